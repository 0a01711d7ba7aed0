"""Measures linear probes on the plant tasks: frozen features of a backbone, or raw pixels.

usage: probe.py IMAGES MODEL_FOLDER|raw [--tasks a,b,...] [--ridge] [--preprocessor FILE] [--by-tile]

IMAGES holds <task>/{train,val,test}/<class>/*.jpg. MODEL_FOLDER is a Hugging Face ViT folder (config.json,
model.safetensors, preprocessor_config.json). raw: the 16x16 RGB picture (Pillow, bilinear), 768 numbers.

Features are scaled to mean 0 and deviation 1 on train. The probe is multinomial logistic regression with
an L2 penalty (L-BFGS, 300 iterations), fitted on train for each of nine penalties; the one with the best
accuracy on val is measured on test, once. --ridge: ridge regression to one-hot targets instead.
--by-tile splits magnetic_tile anew. There a tile was taken at up to six exposures (exp1 ... exp6), whose
running numbers are some 20 apart, so that the split by number puts pictures of one tile into train and
test. --by-tile joins neighbours (same class, numbers at most 100 apart, exposure rising) and puts whole
tiles, in the order of their numbers, into train (5 of 10), val (2) and test (3).
Printed a task: chance (of classes), then test accuracy in % for the class token, for the mean of the
patch tokens (both after the final norm) and for both side by side.
"""
import argparse
import glob
import json
import os
import re
import struct

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

TASKS = 'steel,magnetic_tile,solar_cell,circuit_board,material'


def read_weights(path):
    with open(path, 'rb') as f:
        n = struct.unpack('<Q', f.read(8))[0]
        head, raw = json.loads(f.read(n)), f.read()
    out = {}
    for k, v in head.items():
        if k == '__metadata__':
            continue
        a, b = v['data_offsets']
        t = {'BF16': torch.bfloat16, 'F16': torch.float16, 'F32': torch.float32}[v['dtype']]
        k = k.split('vit.', 1)[1] if k.startswith('vit.') else k
        out[k] = torch.frombuffer(bytearray(raw[a:b]), dtype=t).float().view(v['shape'])
    return out


def preprocess(image, p):
    """As Hugging Face's ViTImageProcessor does: resize, centre crop, rescale, normalise."""
    size, w, h = p['size'], image.width, image.height
    if 'shortest_edge' in size:
        s = size['shortest_edge']
        w, h = (s, int(s * h / w)) if w <= h else (int(s * w / h), s)
    else:
        w, h = size['width'], size['height']
    a = np.asarray(image.resize((w, h), p.get('resample', 2)))
    if p.get('do_center_crop'):
        ch, cw = p['crop_size']['height'], p['crop_size']['width']
        y, x = (h - ch) // 2, (w - cw) // 2
        a = a[y:y + ch, x:x + cw]
    a = a.astype(np.float32) * p['rescale_factor']
    return (a - np.float32(p['image_mean'])) / np.float32(p['image_std'])


class Backbone:
    def __init__(self, folder, preprocessor=None):
        self.c = json.load(open(folder + '/config.json'))
        self.p = json.load(open(preprocessor or folder + '/preprocessor_config.json'))
        self.w = read_weights(folder + '/model.safetensors')

    def features(self, images):
        x = torch.from_numpy(np.stack([preprocess(i, self.p) for i in images])).permute(0, 3, 1, 2)
        c, w, out = self.c, self.w, []
        d, heads, eps = c['hidden_size'], c['num_attention_heads'], c['layer_norm_eps']
        with torch.no_grad():
            for z in x.split(128):
                n = len(z)
                z = F.conv2d(z, w['embeddings.patch_embeddings.projection.weight'], w['embeddings.patch_embeddings.projection.bias'], stride=c['patch_size'])
                z = torch.cat([w['embeddings.cls_token'].expand(n, -1, -1), z.flatten(2).transpose(1, 2)], 1) + w['embeddings.position_embeddings']
                for i in range(c['num_hidden_layers']):
                    t = 'encoder.layer.%d.' % i

                    def linear(name, v):
                        return F.linear(v, w[t + name + '.weight'], w[t + name + '.bias'])

                    def norm(name, v):
                        return F.layer_norm(v, (d,), w[t + name + '.weight'], w[t + name + '.bias'], eps)

                    h = norm('layernorm_before', z)
                    q, k, v = (linear('attention.attention.' + a, h).view(n, -1, heads, d // heads).transpose(1, 2) for a in ('query', 'key', 'value'))
                    a = (q @ k.transpose(-1, -2) / (d // heads) ** 0.5).softmax(-1) @ v
                    z = z + linear('attention.output.dense', a.transpose(1, 2).reshape(n, -1, d))
                    z = z + linear('output.dense', F.gelu(linear('intermediate.dense', norm('layernorm_after', z))))
                z = F.layer_norm(z, (d,), w['layernorm.weight'], w['layernorm.bias'], eps)
                out.append(torch.cat([z[:, 0], z[:, 1:].mean(1)], 1))
        return torch.cat(out).numpy(), d


class Raw:
    def features(self, images):
        return np.stack([np.asarray(i.resize((16, 16), Image.BILINEAR), np.float32).reshape(-1) / 255 for i in images]), None


def load(folder):
    out = {}
    classes = sorted(os.listdir(folder + '/train'))
    for split in ('train', 'val', 'test'):
        files = [(f, k) for k, c in enumerate(classes) for f in sorted(glob.glob('%s/%s/%s/*' % (folder, split, c)))]
        out[split] = [Image.open(f).convert('RGB') for f, _ in files], np.array([k for _, k in files])
    return out, len(classes)


def load_by_tile(folder):
    number = re.compile(r'exp(\d+)_num_(\d+)')
    classes, files = sorted(os.listdir(folder + '/train')), []
    for k, c in enumerate(classes):
        for f in glob.glob('%s/*/%s/*' % (folder, c)):
            e, n = map(int, number.search(f).groups())
            files.append((k, n, e, f))
    out = {s: ([], []) for s in ('train', 'val', 'test')}
    tile, last = -1, (-1, 0, 0)
    for k, n, e, f in sorted(files):
        if k != last[0]:
            tile = 0
        elif n - last[1] > 100 or e <= last[2]:
            tile += 1
        last = (k, n, e)
        s = ('train', 'test', 'train', 'val', 'train', 'test', 'train', 'val', 'train', 'test')[tile % 10]
        out[s][0].append(Image.open(f).convert('RGB'))
        out[s][1].append(k)
    return {s: (i, np.array(k)) for s, (i, k) in out.items()}, len(classes)


def fit(x, y, k, penalty, ridge, start=None):
    if ridge:
        xb = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        t = F.one_hot(y, k).double()
        reg = torch.eye(xb.shape[1], dtype=torch.double) * penalty * len(x)
        reg[-1, -1] = 0
        return torch.linalg.solve(xb.t() @ xb + reg, xb.t() @ t).float()
    w = (torch.zeros(x.shape[1] + 1, k) if start is None else start.clone()).requires_grad_()
    opt = torch.optim.LBFGS([w], max_iter=300, history_size=10, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn='strong_wolfe')

    def closure():
        opt.zero_grad()
        loss = F.cross_entropy(x @ w[:-1] + w[-1], y) + 0.5 * penalty * w[:-1].pow(2).sum()
        loss.backward()
        return loss

    opt.step(closure)
    return w.detach()


def probe(f, y, k, ridge):
    mean, std = f['train'].mean(0), f['train'].std(0) + 1e-6
    x = {s: torch.from_numpy((f[s] - mean) / std).float() for s in f}
    t = {s: torch.from_numpy(y[s]) for s in y}

    def accuracy(w, s):
        return ((x[s] @ w[:-1] + w[-1]).argmax(1) == t[s]).float().mean().item() * 100

    best, w = (-1, 0), None
    for penalty in (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003):
        w = fit(x['train'], t['train'], k, penalty, ridge, w)
        v = accuracy(w, 'val')
        if v > best[0]:
            best = (v, accuracy(w, 'test'), penalty)
    return best


def main():
    p = argparse.ArgumentParser()
    p.add_argument('images')
    p.add_argument('model')
    p.add_argument('--tasks', default=TASKS)
    p.add_argument('--ridge', action='store_true')
    p.add_argument('--preprocessor')
    p.add_argument('--by-tile', action='store_true')
    p.add_argument('--threads', type=int, default=1)
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    model = Raw() if a.model == 'raw' else Backbone(a.model, a.preprocessor)
    print('%-14s %6s  %s' % ('task', 'chance', 'pixels' if a.model == 'raw' else 'class  mean  both (test %; val % in brackets)'), flush=True)
    for task in a.tasks.split(','):
        tile = a.by_tile and task == 'magnetic_tile'
        data, k = (load_by_tile if tile else load)(a.images + '/' + task)
        f, y = {}, {}
        for s, (images, labels) in data.items():
            (f[s], d), y[s] = model.features(images), labels
        parts = [slice(None)] if d is None else [slice(0, d), slice(d, None), slice(None)]
        rows = [probe({s: f[s][:, part] for s in f}, y, k, a.ridge) for part in parts]
        print('%-14s %6.1f  %s' % (task, 100 / k, '  '.join('%5.1f (%.1f)' % (r[1], r[0]) for r in rows)), flush=True)


if __name__ == '__main__':
    main()
