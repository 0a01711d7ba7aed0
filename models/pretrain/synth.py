"""Synthetic inspection pictures, made by code: traces of a circuit board and plain surfaces, each
with one kind of defect or none.

usage: synth.py boards|surfaces COUNT SEED OUT.npz [TEXTURES.npy]

OUT.npz holds  x  (n, 64, 64) uint8     the grey pictures,
               y  (n,)        uint8     the kind (an index of BOARD_KINDS or SURFACE_KINDS; 0 is none),
               m  (n, 8, 8)   uint8     which 8x8 patches the defect touches (0 or 1).
Every picture is drawn at twice or four times its size and reduced, so that edges are smooth.
TEXTURES.npy (see pretrain.py textures) gives two thirds of the backgrounds of the surfaces.
"""
import math
import random
import sys

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

BOARD_KINDS = ['none', 'gap', 'bridge', 'bite', 'bump', 'hole', 'island']
SURFACE_KINDS = ['none', 'dark spot', 'bright spot', 'pits', 'scratch', 'crack', 'patch', 'chipped edge',
                 'uneven', 'network', 'dashes', 'dark cell']
SIZE = 64


def reduce_to(image, side):
    return image.resize((side, side), Image.BOX)


def patch_map(mask):
    """mask: (64, 64) in 0..1 -> (8, 8): patches of which at least 1.5 % (one pixel) is touched."""
    return (mask.reshape(8, 8, 8, 8).mean((1, 3)) > 0.015).astype(np.uint8)


def blob(draw, x, y, r, ink):
    """A small spot of one of several outlines, about r in radius."""
    form = random.randrange(5)
    if form == 0:
        e = r * random.uniform(0.6, 1)
        draw.ellipse((x - r, y - e, x + r, y + e), fill=ink)
    elif form == 1:
        n, t0 = random.randint(5, 11), random.random() * 6.3
        points = []
        for k in range(n):
            a, q = t0 + 6.283 * k / n, r * random.uniform(0.5, 1.15)
            points.append((x + q * math.cos(a), y + q * math.sin(a)))
        draw.polygon(points, fill=ink)
    elif form == 2:                                     # a short bent stroke
        a, w = random.random() * 6.3, max(1, int(r * random.uniform(0.3, 0.8)))
        px, py = x - r * math.cos(a), y - r * math.sin(a)
        points = [(px, py)]
        for _ in range(3):
            px, py = px + r * 0.7 * math.cos(a), py + r * 0.7 * math.sin(a)
            points.append((px, py))
            a += random.uniform(-0.7, 0.7)
        draw.line(points, fill=ink, width=w)
    elif form == 3:                                     # crumbs
        for _ in range(random.randint(3, 9)):
            q = r * random.uniform(0.15, 0.45)
            cx, cy = x + random.uniform(-r, r) * 0.7, y + random.uniform(-r, r) * 0.7
            draw.ellipse((cx - q, cy - q, cx + q, cy + q), fill=ink)
    else:                                               # a bar
        a, l, w = random.random() * 6.3, r, r * random.uniform(0.3, 0.8)
        c, s = math.cos(a), math.sin(a)
        draw.polygon([(x + l * c - w * s, y + l * s + w * c), (x - l * c - w * s, y - l * s + w * c),
                      (x - l * c + w * s, y - l * s - w * c), (x + l * c + w * s, y + l * s - w * c)], fill=ink)


# ---- boards -------------------------------------------------------------------------------------

def thick_line(draw, points, width, ink):
    draw.line(points, fill=ink, width=int(width), joint='curve')
    if random.random() < 0.5:
        for x, y in points:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=ink)


def board_layout(n):
    """Copper (255) and gaps (0) on an n x n picture: planes, tracks, pads, rings."""
    image = Image.new('L', (n, n), 0)
    draw = ImageDraw.Draw(image)
    angle = random.choice([0, 0, 1, 1, 2, 3]) * math.pi / 4
    c, s = math.cos(angle), math.sin(angle)

    def turn(u, v):                                     # u along the tracks, v across, from the centre
        return n / 2 + u * c - v * s, n / 2 + u * s + v * c

    style = random.random()
    if style < 0.2:                                     # a plane with a straight border
        v = random.uniform(-0.35, 0.35) * n
        draw.polygon([turn(-n, v), turn(n, v), turn(n, 2 * n), turn(-n, 2 * n)], fill=255)
        if random.random() < 0.5:
            v2 = v - random.uniform(0.12, 0.5) * n
            draw.polygon([turn(-n, v2), turn(n, v2), turn(n, -2 * n), turn(-n, -2 * n)], fill=255)
    elif style < 0.35:                                  # a plane all over, with openings
        draw.rectangle((0, 0, n, n), fill=255)
        for _ in range(random.randint(0, 3)):
            x, y, r = random.random() * n, random.random() * n, random.uniform(0.08, 0.35) * n
            if random.random() < 0.6:
                draw.ellipse((x - r, y - r, x + r, y + r), fill=0)
            else:
                a = random.random() * r
                draw.rounded_rectangle((x - r, y - a - 4, x + r, y + a + 4), radius=min(6, a), fill=0)
    if style < 0.1 or style >= 0.35:                    # tracks with bends
        v = random.uniform(-0.75, -0.35) * n
        w = random.uniform(0.04, 0.3) * n
        while v < 0.75 * n:
            if random.random() < 0.8:
                ww = w if random.random() < 0.6 else random.uniform(0.04, 0.3) * n
                points = [turn(-0.9 * n, v)]
                if random.random() < 0.45:
                    u, d = random.uniform(-0.5, 0.5) * n, random.choice([-1, 1]) * random.uniform(0.15, 0.6) * n
                    points += [turn(u, v), turn(u + abs(d), v + d)]
                    if random.random() < 0.7:
                        points.append(turn(1.2 * n, v + d))
                elif random.random() < 0.2:
                    points.append(turn(random.uniform(-0.3, 0.5) * n, v))
                else:
                    points.append(turn(0.9 * n, v))
                thick_line(draw, points, max(4, ww), 255)
            v += w + random.uniform(0.06, 0.4) * n
    for _ in range(random.choice([0, 0, 1, 1, 2, 3])):  # pads
        x, y, r = random.random() * n, random.random() * n, random.uniform(0.08, 0.32) * n
        g = r + random.uniform(0, 0.12) * n
        if random.random() < 0.6:
            if random.random() < 0.5:
                draw.ellipse((x - g, y - g, x + g, y + g), fill=0)
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
            if random.random() < 0.5:
                q = r * random.uniform(0.25, 0.75)
                draw.ellipse((x - q, y - q, x + q, y + q), fill=0)
        else:
            b = r * random.uniform(0.5, 1.4)
            k = random.uniform(0, 0.6) * min(r, b)
            draw.rounded_rectangle((x - r, y - b, x + r, y + b), radius=k, fill=255)
    return image


def ray(a, x, y, dx, dy, value, limit):
    """How far one goes from (x, y) along (dx, dy) while the picture has that value; None: to the border."""
    n = a.shape[0]
    for k in range(1, limit):
        u, v = int(round(x + dx * k)), int(round(y + dy * k))
        if not (0 <= u < n and 0 <= v < n):
            return None
        if (a[v, u] > 127) != value:
            return k
    return limit


def board_defect(image, kind, n):
    """Draws the defect; returns its mask, or None where the layout has no place for it."""
    a = np.asarray(image)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(2)), np.float32)
    gy, gx = np.gradient(soft)
    strength = np.hypot(gx, gy)
    lo, hi = int(n * 0.28), int(n * 0.72)
    before = image.copy()
    draw = ImageDraw.Draw(image)
    if kind in ('hole', 'island'):
        copper = kind == 'hole'
        for _ in range(25):
            x, y = random.uniform(lo, hi), random.uniform(lo, hi)
            if (a[int(y), int(x)] > 127) != copper:
                continue
            room = n
            for k in range(12):
                t = 6.283 * k / 12
                d = ray(a, x, y, math.cos(t), math.sin(t), copper, 30)
                room = min(room, 30 if d is None else d)
            if room < 6:
                continue
            blob(draw, x, y, random.uniform(3, max(3.5, min(room - 2.5, 14))), 0 if copper else 255)
            break
        else:
            return None
    else:
        ys, xs = np.nonzero(strength[lo:hi, lo:hi] > 18)
        if len(ys) == 0:
            return None
        for _ in range(25):
            k = random.randrange(len(ys))
            x, y = int(xs[k]) + lo, int(ys[k]) + lo
            l = strength[y, x]
            nx, ny = gx[y, x] / l, gy[y, x] / l         # towards the copper
            if kind in ('gap', 'bite'):
                dx, dy, copper, ink = nx, ny, True, 0
            else:
                dx, dy, copper, ink = -nx, -ny, False, 255
            t = 0
            while t < 5 and (a[min(n - 1, max(0, int(round(y + dy * t)))), min(n - 1, max(0, int(round(x + dx * t))))] > 127) != copper:
                t += 1
            if t == 5:
                continue
            x, y = x + dx * t, y + dy * t
            room = ray(a, x, y, dx, dy, copper, 72)
            if kind in ('gap', 'bridge'):
                if room is None or room < 5 or room > 56:
                    continue
                w = random.uniform(2, 7) if random.random() < 0.6 else random.uniform(5, 16)
                j = random.uniform(-0.25, 0.25) * room
                ex, ey = x + dx * (room + 3) - dy * j, y + dy * (room + 3) + dx * j
                sx, sy = x - dx * 4, y - dy * 4
                points = [(sx, sy)]
                bend = random.random() * 0.12 * room
                for q in (0.3, 0.5, 0.7):
                    points.append((sx + (ex - sx) * q + random.uniform(-bend, bend), sy + (ey - sy) * q + random.uniform(-bend, bend)))
                points.append((ex, ey))
                draw.line(points, fill=ink, width=max(2, int(w)), joint='curve')
                if random.random() < 0.3:
                    for px, py in points[1:4]:
                        blob(draw, px, py, w * 0.8, ink)
            else:
                reach = 60 if room is None else room
                depth = min(random.uniform(5, 22), 0.62 * reach)
                if depth < 4:
                    continue
                if random.random() < 0.5:               # a tooth
                    w = random.uniform(2.5, max(3, min(8, depth)))
                    j = random.uniform(-0.5, 0.5)
                    ex, ey = x + (dx - dy * j) * depth, y + (dy + dx * j) * depth
                    draw.line([(x - dx * 3, y - dy * 3), (ex, ey)], fill=ink, width=max(2, int(w)))
                    if random.random() < 0.6:
                        r = w * random.uniform(0.5, 0.9)
                        draw.ellipse((ex - r, ey - r, ex + r, ey + r), fill=ink)
                else:
                    r = depth / 2
                    blob(draw, x + dx * r * 0.8, y + dy * r * 0.8, r * 1.15, ink)
            break
        else:
            return None
    mask = np.abs(np.asarray(image, np.int16) - np.asarray(before, np.int16))
    return mask if (mask > 127).sum() >= 12 else None


def board(_textures):
    n = 2 * SIZE
    kind = random.randrange(len(BOARD_KINDS))
    while True:
        image = board_layout(n)
        if kind == 0:
            mask = np.zeros((n, n), np.int16)
            break
        mask = board_defect(image, BOARD_KINDS[kind], n)
        if mask is not None:
            break
    a = np.asarray(image, np.float32)
    if random.random() < 0.6:                           # rough edges
        noise = np.random.randn(n // 2, n // 2).astype(np.float32) * random.uniform(10, 35)
        noise = np.asarray(Image.fromarray(noise).resize((n, n), Image.NEAREST if random.random() < 0.5 else Image.BILINEAR))
        soft = np.asarray(Image.fromarray(a.astype(np.uint8)).filter(ImageFilter.GaussianBlur(random.uniform(0.6, 1.3))), np.float32)
        a = np.where(soft + noise > 127, 255, 0).astype(np.float32)
    z = np.asarray(reduce_to(Image.fromarray(a), SIZE)) / 255
    m = np.asarray(reduce_to(Image.fromarray(mask.astype(np.float32)), SIZE)) / 255
    dark, light = (0, 1) if random.random() < 0.4 else (random.uniform(0, 0.4), random.uniform(0.6, 1))
    z = (light + (dark - light) * z) if random.random() < 0.75 else (dark + (light - dark) * z)
    return np.clip(z * 255, 0, 255).astype(np.uint8), kind, patch_map(m)


# ---- surfaces -----------------------------------------------------------------------------------

def fractal(n, cells, keep=0.5):
    """Smooth noise of several scales, mean 0, deviation about 1."""
    z, w = np.zeros((n, n), np.float32), 1.0
    while cells <= n:
        k = np.random.randn(cells, cells).astype(np.float32)
        z += w * np.asarray(Image.fromarray(k).resize((n, n), Image.BICUBIC))
        cells, w = cells * 2, w * keep
    return (z - z.mean()) / (z.std() + 1e-6)


def surface_ground(textures):
    """(64, 64) floats of 0..1, and the mask of the object (1) where it ends within the picture."""
    n, kind = SIZE, random.random()
    if textures is not None and kind < 0.62:
        t = textures[random.randrange(len(textures))]
        side = t.shape[0]
        w, h = random.randint(72, side), random.randint(72, side)
        x, y = random.randint(0, side - w), random.randint(0, side - h)
        z = np.asarray(Image.fromarray(t[y:y + h, x:x + w]).convert('L').resize((n, n), Image.BILINEAR), np.float32) / 255
        z = (z - z.mean()) * random.uniform(0.15, 1) + random.uniform(0.25, 0.75)
    elif kind < 0.8:                                    # brushed: streaks along one direction
        rows = np.random.randn(1, n).astype(np.float32) * 0.7 + np.random.randn(n, n).astype(np.float32) * 0.4
        z = np.asarray(Image.fromarray(rows).resize((n, n * random.choice([1, 2, 4])), Image.BILINEAR))[:n]
        z = random.uniform(0.25, 0.75) + z * random.uniform(0.02, 0.12) + fractal(n, 2) * random.uniform(0, 0.08)
        z = z if random.random() < 0.5 else z.T
    else:
        z = random.uniform(0.25, 0.8) + fractal(n, random.choice([2, 4, 8, 16]), random.uniform(0.3, 0.9)) * random.uniform(0.01, 0.15)
    z = z + (np.random.rand() - 0.5) * np.linspace(-0.5, 0.5, n)[None, :] * random.choice([0, 0.6]) \
          + (np.random.rand() - 0.5) * np.linspace(-0.5, 0.5, n)[:, None] * random.choice([0, 0.6])
    if random.random() < 0.25:                          # conductor lines
        for k in range(random.randint(1, 4)):
            p, w, d = random.randrange(n), random.choice([1, 1, 2]), random.uniform(-0.4, 0.25)
            if random.random() < 0.8:
                z[p:p + w, random.choice([0, 0, 4]):] += d
            else:
                z[:, p:p + w] += d
    return z.astype(np.float32)


def wander(draw, n, width, ink, branches):
    x, y, a = random.uniform(0.1, 0.9) * n, random.uniform(0.1, 0.9) * n, random.random() * 6.3
    step, points = random.uniform(0.03, 0.09) * n, [(x, y)]
    for _ in range(random.randint(5, 16)):
        a += random.gauss(0, 0.5)
        x, y = x + step * math.cos(a), y + step * math.sin(a)
        points.append((x, y))
        if branches and random.random() < 0.15:
            b, px, py, side = a + random.choice([-1, 1]) * random.uniform(0.4, 1.2), x, y, [(x, y)]
            for _ in range(random.randint(2, 6)):
                b += random.gauss(0, 0.4)
                px, py = px + step * math.cos(b), py + step * math.sin(b)
                side.append((px, py))
            draw.line(side, fill=ink, width=max(1, width - 1))
    draw.line(points, fill=ink, width=width)


def surface(textures):
    n = 4 * SIZE
    kind = random.randrange(len(SURFACE_KINDS))
    name = SURFACE_KINDS[kind]
    z = surface_ground(textures)
    cover = Image.new('L', (n, n), 0)
    draw = ImageDraw.Draw(cover)
    sign, soft = random.choice([-1, -1, 1]), 0
    level = random.uniform(0.12, 0.6)
    if name in ('dark spot', 'bright spot'):
        sign = -1 if name == 'dark spot' else 1
        for _ in range(random.choice([1, 1, 1, 2, 3])):
            blob(draw, random.uniform(0.08, 0.92) * n, random.uniform(0.08, 0.92) * n, random.uniform(5, 26), 255)
        soft = random.uniform(0, 3)
    elif name == 'pits':
        r0 = random.uniform(3, 9)
        cx, cy, sp = random.uniform(0.2, 0.8) * n, random.uniform(0.2, 0.8) * n, random.uniform(0.15, 0.6) * n
        for _ in range(random.randint(10, 60)):
            x, y, r = random.gauss(cx, sp), random.gauss(cy, sp), r0 * random.uniform(0.5, 1.5)
            draw.ellipse((x - r, y - r * random.uniform(0.6, 1), x + r, y + r), fill=255)
        soft = random.uniform(0, 2)
    elif name == 'scratch':
        a = random.random() * 6.3
        for _ in range(random.choice([1, 1, 2, 3, 5])):
            x, y, l = random.uniform(0.1, 0.9) * n, random.uniform(0.1, 0.9) * n, random.uniform(0.2, 1.2) * n
            b = a + random.gauss(0, 0.08)
            draw.line([(x - l / 2 * math.cos(b), y - l / 2 * math.sin(b)), (x + l / 2 * math.cos(b), y + l / 2 * math.sin(b))], fill=255, width=random.randint(2, 8))
    elif name == 'crack':
        sign = -1 if random.random() < 0.85 else 1
        for _ in range(random.choice([1, 1, 2])):
            wander(draw, n, random.randint(3, 7), 255, True)
    elif name == 'patch':
        for _ in range(random.choice([1, 1, 2, 4])):
            x, y, r = random.uniform(0.1, 0.9) * n, random.uniform(0.1, 0.9) * n, random.uniform(0.1, 0.32) * n
            k, t = random.randint(7, 14), random.uniform(0.4, 1)
            draw.polygon([(x + r * random.uniform(t, 1.2) * math.cos(6.283 * q / k), y + r * random.uniform(t, 1.2) * math.sin(6.283 * q / k)) for q in range(k)], fill=255)
        soft = random.choice([1, 3, 6])
    elif name == 'uneven':
        if random.random() < 0.5:                       # a band of another tone
            x, w = random.uniform(-0.1, 0.8) * n, random.uniform(0.15, 0.7) * n
            draw.polygon([(x, 0), (x + w, 0), (x + w + random.uniform(-40, 40), n), (x + random.uniform(-40, 40), n)], fill=255)
            soft = random.choice([0, 4, 12])
        else:
            x, y, r = random.uniform(0, 1) * n, random.uniform(0, 1) * n, random.uniform(0.2, 0.5) * n
            draw.ellipse((x - r, y - r * random.uniform(0.4, 1), x + r, y + r), fill=255)
            soft = 24
        level *= 0.7
        if random.random() < 0.5:
            cover = cover.transpose(Image.TRANSPOSE)
    elif name == 'network':
        for _ in range(random.randint(8, 22)):
            wander(draw, n, random.randint(2, 4), 255, False)
        level *= 0.8
    elif name == 'dashes':
        a = random.random() * 6.3
        for _ in range(random.randint(3, 14)):
            x, y, l = random.random() * n, random.random() * n, random.uniform(0.04, 0.2) * n
            b = a + random.gauss(0, 0.15)
            draw.line([(x, y), (x + l * math.cos(b), y + l * math.sin(b))], fill=255, width=random.randint(3, 12))
        soft = random.uniform(0, 2)
    elif name == 'dark cell':
        sign = -1
        for _ in range(random.choice([1, 1, 2, 3])):
            x, y, w, h = random.randrange(8) * n / 8, random.randrange(8) * n / 8, random.uniform(0.08, 0.5) * n, random.uniform(0.08, 0.5) * n
            if random.random() < 0.5:
                draw.rectangle((x, y, x + w, y + h), fill=255)
            else:
                draw.polygon([(x, y), (x + w, y + random.uniform(0, h)), (x + random.uniform(0, w), y + h)], fill=255)
    if soft:
        cover = cover.filter(ImageFilter.GaussianBlur(soft))
    m = np.asarray(reduce_to(cover, SIZE), np.float32) / 255
    edge = name == 'chipped edge' or random.random() < 0.25
    if edge:                                            # the object ends within the picture
        outside, p = np.full((n, n), 0, np.uint8), random.uniform(0.05, 0.22) * n
        o = Image.fromarray(outside)
        d = ImageDraw.Draw(o)
        d.polygon([(0, 0), (n, 0), (n, p + random.uniform(-8, 8)), (0, p)], fill=255)
        if name == 'chipped edge':
            whole = np.asarray(reduce_to(o, SIZE), np.float32) / 255
            for _ in range(random.choice([1, 1, 2])):
                x, r = random.uniform(0.08, 0.92) * n, random.uniform(0.04, 0.16) * n
                k = random.randint(5, 10)
                d.polygon([(x + r * random.uniform(0.6, 1.5) * math.cos(6.283 * q / k), p + r * random.uniform(0.5, 1.2) * math.sin(6.283 * q / k)) for q in range(k)], fill=255)
        out = np.asarray(reduce_to(o, SIZE), np.float32) / 255
        m = m * (1 - out)
        turns = random.randrange(4)
        tone = random.uniform(0, 0.2) if random.random() < 0.8 else random.uniform(0.8, 1)
        if name == 'chipped edge':
            m, level = np.clip(out - whole, 0, 1), 0
        z = z + sign * level * m * random.uniform(0.7, 1.3)
        z = z * (1 - out) + tone * out
        z, m = np.rot90(z, turns), np.rot90(m, turns)
    else:
        z = z + sign * level * m
    return np.clip(z * 255, 0, 255).astype(np.uint8), kind, patch_map(np.ascontiguousarray(m) * (m > 0.15))


def main():
    what, count, seed, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    textures = np.load(sys.argv[5], mmap_mode='r') if len(sys.argv) > 5 else None
    random.seed(seed)
    np.random.seed(seed)
    make = board if what == 'boards' else surface
    x, y, m = np.empty((count, SIZE, SIZE), np.uint8), np.empty(count, np.uint8), np.empty((count, 8, 8), np.uint8)
    for k in range(count):
        x[k], y[k], m[k] = make(textures)
    np.savez(out, x=x, y=y, m=m)


if __name__ == '__main__':
    main()
