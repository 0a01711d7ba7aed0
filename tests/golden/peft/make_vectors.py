"""Vectors of PEFT equality: the same adapter folder, by the formula in PyTorch.

usage: make_vectors.py [FOLDER]        (Debian's python3-torch; default: where the script lies)

Writes a small random ViT under Hugging Face names (model/), adapter folders as PEFT writes them,
and for each the logits of y = x (W + s B A)' + b in double (expected.json). Plain LoRA, rsLoRA,
targets that are only some layers, and ranks and alphas that differ by layer.
"""
import json
import math
import os
import struct
import sys

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
D, MLP, HEADS, DEPTH, SIDE, PATCH, CLASSES, IMAGES = 16, 24, 2, 2, 8, 4, 3, 3
LINEARS = {"attention.attention.query": (D, D), "attention.attention.key": (D, D),
           "attention.attention.value": (D, D), "attention.output.dense": (D, D),
           "intermediate.dense": (MLP, D), "output.dense": (D, MLP)}


def save(path, tensors):
    """float32 safetensors"""
    head, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors):
        data = tensors[name].float().contiguous().numpy().tobytes()
        head[name] = {"dtype": "F32", "shape": list(tensors[name].shape),
                      "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def draw(*shape, k=0.3):
    return (torch.randn(*shape) * k).float().double()


def make_model():
    w = {"vit.embeddings.cls_token": draw(1, 1, D),
         "vit.embeddings.position_embeddings": draw(1, 1 + (SIDE // PATCH) ** 2, D),
         "vit.embeddings.patch_embeddings.projection.weight": draw(D, 3, PATCH, PATCH),
         "vit.embeddings.patch_embeddings.projection.bias": draw(D)}
    for i in range(DEPTH):
        layer = f"vit.encoder.layer.{i}."
        for name, (out, into) in LINEARS.items():
            w[layer + name + ".weight"], w[layer + name + ".bias"] = draw(out, into), draw(out)
        for name in ("layernorm_before", "layernorm_after"):
            w[layer + name + ".weight"], w[layer + name + ".bias"] = 1 + draw(D), draw(D)
    w["vit.layernorm.weight"], w["vit.layernorm.bias"] = 1 + draw(D), draw(D)
    w["classifier.weight"], w["classifier.bias"] = draw(CLASSES, D), draw(CLASSES)
    return {k: v.float().double() for k, v in w.items()}


def forward(w, delta, x):
    def linear(h, m):
        return h @ (w[m + ".weight"] + delta.get(m, 0)).T + w[m + ".bias"]

    def norm(h, m):
        return F.layer_norm(h, (D,), w[m + ".weight"], w[m + ".bias"], 1e-12)

    e = "vit.embeddings."
    h = F.conv2d(x, w[e + "patch_embeddings.projection.weight"],
                 w[e + "patch_embeddings.projection.bias"], stride=PATCH).flatten(2).transpose(1, 2)
    h = torch.cat([w[e + "cls_token"].expand(len(x), 1, D), h], 1) + w[e + "position_embeddings"]
    n, t, _ = h.shape
    for i in range(DEPTH):
        layer = f"vit.encoder.layer.{i}."
        z = norm(h, layer + "layernorm_before")
        q, k, v = (linear(z, layer + "attention.attention." + m).reshape(n, t, HEADS, D // HEADS)
                   .transpose(1, 2) for m in ("query", "key", "value"))
        a = (q @ k.transpose(-1, -2) / math.sqrt(D // HEADS)).softmax(-1) @ v
        h = h + linear(a.transpose(1, 2).reshape(n, t, D), layer + "attention.output.dense")
        z = F.gelu(linear(norm(h, layer + "layernorm_after"), layer + "intermediate.dense"))
        h = h + linear(z, layer + "output.dense")
    return norm(h, "vit.layernorm")[:, 0] @ w["classifier.weight"].T + w["classifier.bias"]


def by_pattern(pattern, module, otherwise):
    """PEFT's rule: the module is the key, or ends in .key"""
    for key, value in pattern.items():
        if module == key or module.endswith("." + key):
            return value
    return otherwise


ADAPTERS = {
    "plain": dict(r=4, lora_alpha=8, use_rslora=False,
                  target_modules=["dense", "key", "query", "value"]),
    "rslora": dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["query", "value"]),
    "patterns": dict(r=2, lora_alpha=4, use_rslora=False,
                     target_modules=["intermediate.dense", "query", "value"],
                     rank_pattern={"layer.1.intermediate.dense": 5, "query": 3},
                     alpha_pattern={"query": 9, "layer.0.attention.attention.value": 1}),
    "patterns_rslora": dict(r=3, lora_alpha=6, use_rslora=True,
                            target_modules=["attention.output.dense", "key"],
                            rank_pattern={"layer.0.attention.output.dense": 8},
                            alpha_pattern={"layer.1.attention.attention.key": 2}),
}


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    torch.manual_seed(11)
    w, x = make_model(), draw(IMAGES, 3, SIDE, SIDE, k=1.0)
    save(folder + "/model/model.safetensors", w)
    with open(folder + "/model/config.json", "w") as f:
        json.dump(dict(model_type="vit", architectures=["ViTForImageClassification"],
                       hidden_size=D, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
                       intermediate_size=MLP, hidden_act="gelu", layer_norm_eps=1e-12,
                       image_size=SIDE, patch_size=PATCH, num_channels=3, qkv_bias=True), f,
                  indent=1)
    expected = {"pixel_values": x.flatten().tolist(), "images": IMAGES,
                "frozen": forward(w, {}, x).flatten().tolist(), "adapters": {}}
    for name, c in ADAPTERS.items():
        tensors, delta = {}, {}
        for i in range(DEPTH):
            for m, (out, into) in LINEARS.items():
                module = f"vit.encoder.layer.{i}.{m}"
                if not any(module.endswith("." + t) for t in c["target_modules"]):
                    continue
                r = by_pattern(c.get("rank_pattern", {}), module, c["r"])
                alpha = by_pattern(c.get("alpha_pattern", {}), module, c["lora_alpha"])
                A, B = draw(r, into), draw(out, r)
                tensors[f"base_model.model.{module}.lora_A.weight"] = A
                tensors[f"base_model.model.{module}.lora_B.weight"] = B
                delta[module] = alpha / (math.sqrt(r) if c["use_rslora"] else r) * B @ A
        save(f"{folder}/{name}/adapter_model.safetensors", tensors)
        with open(f"{folder}/{name}/adapter_config.json", "w") as f:
            json.dump(dict(c, peft_type="LORA", bias="none", task_type=None, lora_dropout=0.0,
                           fan_in_fan_out=False, inference_mode=True,
                           base_model_name_or_path="model"), f, indent=1)
        expected["adapters"][name] = forward(w, delta, x).flatten().tolist()
    with open(folder + "/expected.json", "w") as f:
        json.dump(expected, f, indent=0)


if __name__ == "__main__":
    main()
