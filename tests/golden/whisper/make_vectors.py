"""Vectors of the speech encoder: Whisper's encoder written down independently in PyTorch.

usage: make_vectors.py [FOLDER]        (Debian's python3-torch; default: where the script lies)

Writes a small random encoder under Hugging Face names (model/), an adapter as PEFT writes it over
every linear layer (adapter/), and in double (io.safetensors, F64) for sounds of an even, an odd and
the full number of frames, each alone as it is: hidden.k.0 .. hidden.k.L, last.k (final norm) and
the features (mean over time), frozen and with the adapter.
"""
import json
import math
import os
import struct
import sys

import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
D, MLP, HEADS, DEPTH, MELS, POSITIONS, RANK, ALPHA = 32, 48, 4, 2, 10, 12, 3, 6
FRAMES = (14, 9, 24)
LINEARS = {"self_attn.q_proj": (D, D), "self_attn.k_proj": (D, D), "self_attn.v_proj": (D, D),
           "self_attn.out_proj": (D, D), "fc1": (MLP, D), "fc2": (D, MLP)}
P = "model.encoder."


def save(path, tensors, kind):
    head, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name in sorted(tensors):
        t = tensors[name].float() if kind == "F32" else tensors[name]
        data = t.contiguous().numpy().tobytes()
        head[name] = {"dtype": kind, "shape": list(t.shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
        blobs.append(data)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def draw(*shape, k=0.2):
    return (torch.randn(*shape) * k).float().double()


def make_model():
    w = {P + "conv1.weight": draw(D, MELS, 3), P + "conv1.bias": draw(D),
         P + "conv2.weight": draw(D, D, 3), P + "conv2.bias": draw(D),
         P + "embed_positions.weight": draw(POSITIONS, D)}
    norms = [P + "layer_norm"]
    for i in range(DEPTH):
        layer = f"{P}layers.{i}."
        for name, (out, into) in LINEARS.items():
            w[layer + name + ".weight"] = draw(out, into)
            if not name.endswith("k_proj"):
                w[layer + name + ".bias"] = draw(out)
        norms += [layer + "self_attn_layer_norm", layer + "final_layer_norm"]
    for name in norms:
        w[name + ".weight"], w[name + ".bias"] = (1 + draw(D)).float().double(), draw(D)
    return w


def encode(w, delta, mel):
    """mel (mels, frames) -> hidden states and the final norm's output, (frames / 2, D)"""
    def linear(h, m):
        y = h @ (w[m + ".weight"] + delta.get(m, 0)).T
        return y + w[m + ".bias"] if m + ".bias" in w else y

    def norm(h, m):
        return F.layer_norm(h, (D,), w[m + ".weight"], w[m + ".bias"], 1e-5)

    h = F.gelu(F.conv1d(mel[None], w[P + "conv1.weight"], w[P + "conv1.bias"], padding=1))
    h = F.gelu(F.conv1d(h, w[P + "conv2.weight"], w[P + "conv2.bias"], stride=2, padding=1))
    h = h[0].T
    t = len(h)
    h = h + w[P + "embed_positions.weight"][:t]
    states = [h]
    for i in range(DEPTH):
        layer = f"{P}layers.{i}."
        z = norm(h, layer + "self_attn_layer_norm")
        q, k, v = (linear(z, layer + f"self_attn.{m}_proj").reshape(t, HEADS, D // HEADS)
                   .transpose(0, 1) for m in "qkv")
        a = (q @ k.transpose(-1, -2) / math.sqrt(D // HEADS)).softmax(-1) @ v
        h = h + linear(a.transpose(0, 1).reshape(t, D), layer + "self_attn.out_proj")
        h = h + linear(F.gelu(linear(norm(h, layer + "final_layer_norm"), layer + "fc1")),
                       layer + "fc2")
        states.append(h)
    return states, norm(h, P + "layer_norm")


def main():
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    torch.manual_seed(5)
    w, delta, peft, io = make_model(), {}, {}, {}
    for i in range(DEPTH):
        for m, (out, into) in LINEARS.items():
            module, A, B = f"{P}layers.{i}.{m}", draw(RANK, into), draw(out, RANK)
            peft[f"base_model.model.{module}.lora_A.weight"] = A
            peft[f"base_model.model.{module}.lora_B.weight"] = B
            delta[module] = ALPHA / RANK * B @ A
    for k, frames in enumerate(FRAMES):
        mel = draw(MELS, frames, k=1.0)
        states, last = encode(w, {}, mel)
        io[f"mel.{k}"], io[f"last.{k}"], io[f"feature.{k}"] = mel, last, last.mean(0)
        io.update({f"hidden.{k}.{i}": h for i, h in enumerate(states)})
        io[f"adapted_feature.{k}"] = encode(w, delta, mel)[1].mean(0)
    save(folder + "/model/model.safetensors", w, "F32")
    save(folder + "/adapter/adapter_model.safetensors", peft, "F32")
    save(folder + "/io.safetensors", io, "F64")
    with open(folder + "/model/config.json", "w") as f:
        json.dump(dict(model_type="whisper", d_model=D, encoder_layers=DEPTH,
                       encoder_attention_heads=HEADS, encoder_ffn_dim=MLP, num_mel_bins=MELS,
                       max_source_positions=POSITIONS, activation_function="gelu"), f, indent=1)
    with open(folder + "/adapter/adapter_config.json", "w") as f:
        json.dump(dict(peft_type="LORA", r=RANK, lora_alpha=ALPHA, use_rslora=False, bias="none",
                       target_modules=sorted(m.split(".")[-1] for m in LINEARS), task_type=None,
                       lora_dropout=0.0, fan_in_fan_out=False, inference_mode=True,
                       base_model_name_or_path="model"), f, indent=1)


if __name__ == "__main__":
    main()
