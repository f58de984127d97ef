"""Made benchmark.json: every kind of row of the full shape, times from known laws with seeded noise; parts of 2.1."""

import numpy as np

from experiments.benchmarks.gpu.shapes import FULL, FULL_21

PEAK, COPY = 600e12, 2.6e12
MILLISECONDS = {
    "ours fast": (48.0, 127.0),
    "ours fast, cold": (52.0, 131.0),
    "ours plain": (104.0, 262.0),
    "ours compiled blocks": (70.0, 190.0),
    "mflux": (103.0, 253.0),
    "diffusers eager": (201.0, 230.0),
    "diffusers compiled": (161.0, 143.0),
}
EXPONENT = 1.2
BLOCK_MS = {"ours fast": (0.76, 2.08), "ours plain": (1.68, 4.3), "ours compiled blocks": (1.1, 3.1)}
ARRAYS = {"none": 0, "off": 0, "blocks": 120, "every operation": 3600}
GUIDANCE = {"one by one": 1.0, "batched": 0.8, "batched, padded": 0.9}
STORED = {"affine4": 1.1, "affine8": 1.2, "nvfp4": 1.4}
PROBES = {"off": 1.0, "blocks": 1.02, "every operation": 1.1}


def record(rounds=12, noise=0.01):
    rng = np.random.default_rng(0)

    def times(seconds, n=rounds, **tags):
        return [
            {"kind": "time", **tags, "round": i, "order": 0, "seconds": seconds * float(np.exp(noise * rng.normal()))}
            for i in range(n)
        ]

    parts = {}
    for name in ("forward_mlx.0", "forward_torch.0", "forward_torch.1", "forward_mlx.1"):
        rows = []
        for arm, values in MILLISECONDS.items():
            if arm.startswith("diffusers") == ("torch" in name):
                for side, ms in zip(FULL.forward_sides, values, strict=True):
                    rows += times(ms / 1e3, arm=arm, side=side)
                    rows.append({"kind": "memory", "arm": arm, "side": side, "peak_gb": 42.6})
        parts[name] = rows
    error = {"rel_l2": 1e-3, "sqnr_db": 60.0, "max_abs_err": 0.01, "num_nonfinite": 0}
    parts["forward_mlx.0"] += [
        {"kind": "drift", "arm": "ours fast", "role": "variant", "side": 512, "against": "ours plain", **error},
        {"kind": "error", "arm": "mflux", "side": 512, "error": "RuntimeError: a | b\nc"},
    ]
    same = {"arm": "mflux", "dtype": "float32", "blocks": 2, "against": "ours plain/float32", **error, "sqnr_db": None}
    parts["same_function_torch.0"] = [{"kind": "same_function", **same}]
    parts["pieces.0"] = [row for piece in _pieces() for row in (piece[0], *times(piece[1], **piece[2]))]
    few, many = FULL.piece_depths
    parts["block.0"] = [
        row
        for arm, values in BLOCK_MS.items()
        for side, ms in zip(FULL.forward_sides, values, strict=True)
        for depth in (few, many)
        for row in times((2 + ms * depth) / 1e3, arm=arm, depth=depth, side=side)
    ]
    parts["tokens.0"] = [
        row
        for arm, factor in (("ours plain", 2.0), ("ours fast", 1.0))
        for side in FULL.token_sides
        for row in times(factor * 1e-5 * _joint(side) ** EXPONENT, arm=arm, side=side, tokens=_joint(side))
    ]
    parts["depth.0"] = [
        row
        for arm, block in (("ours plain", 1.7e-3), ("ours fast", 0.8e-3))
        for depth in FULL.depths
        for row in times(2e-3 + block * depth, arm=arm, depth=depth, side=512)
    ]
    parts["probes.0"] = [
        {**row, "setup_seconds": 0.02, "arrays": ARRAYS[probes]}
        for arm in ("ours plain", "ours fast")
        for probes, ratio in {"none": 1.0, **PROBES}.items()
        if (arm, probes) != ("ours fast", "every operation")
        for row in times(0.2 * ratio, arm=arm, probes=probes, side=1024)
    ]
    parts["guidance.0"] = [
        row
        for arm in ("ours plain", "ours fast")
        for way, ratio in GUIDANCE.items()
        for row in times(0.1 * ratio, arm=arm, way=way, side=512)
    ]
    parts["stored.0"] = [
        row
        for stored, ratio in STORED.items()
        for side in FULL.forward_sides
        for way in ("forward", "both branches in a batch")
        for format_, route, factor in (("bfloat16", "dense", 1.0), (stored, "measured", ratio), (stored, "packed", 4.0))
        for row in times(0.1 * factor, format=format_, route=route, beside=stored, way=way, side=side)
    ]
    parts["stored.0"] += [
        {
            "kind": "memory",
            "format": name,
            "side": side,
            "coded_gb": packed,
            "packed_gb": packed + more,
            "beyond_gb": packed + 1.5 + more,
            "packing_s": 0.25,
        }
        for name, packed, more in (("bfloat16", 0.0, 0.0), ("affine4", 11.5, 0.5), ("affine8", 21.7, 0.5))
        for side in FULL.forward_sides
    ]
    environment = {"shape": "full", "device": "made", "commit": "0123456789abcdef", "mlx": "0.32.4"}
    return {"parts": {n: {"environment": environment, "complete": True, "rows": rows} for n, rows in parts.items()}}


def record_21(ratio):
    """Pieces of `fast` at PEAK, and forwards that take `ratio` times as long as the pieces of all blocks."""
    config, rows, forwards = FULL_21.config, [], []
    d, hidden = config.dim, config.hidden
    for side in FULL_21.forward_sides:
        tokens = FULL_21.tokens(side)
        flops = {f"product {k} to {n}": 2 * tokens * k * n for k, n in _packed(d, hidden)}
        flops["attention"] = 4 * d * tokens * (tokens + FULL_21.text_tokens)
        for name, count in flops.items():
            way = "eager" if name == "attention" else "matmul"
            tags = {"piece": name, "group": name.split()[0], "way": way, "tokens": tokens}
            rows.append({"kind": "piece", **tags, "flops": count, "nbytes": 1, "chained": True})
            rows.append({"kind": "time", **tags, "round": 0, "seconds": count / PEAK})
        seconds = ratio * config.num_layers * sum(flops.values()) / PEAK
        forwards.append({"kind": "time", "arm": "ours fast", "side": side, "round": 0, "seconds": seconds})
    once = {"kind": "time", "arm": "ours fast", "what": "prefill", "text_tokens": 64, "seconds": 0.004}
    parts = {"pieces.0": rows, "forward_mlx.0": [*forwards, {**once, "round": 0}, {**once, "round": 1}]}
    environment = {"shape": "full_21"}
    return {"parts": {n: {"environment": environment, "complete": True, "rows": r} for n, r in parts.items()}}


def _packed(d, hidden):
    return (d, 3 * d), (d, d), (d, 2 * hidden), (hidden, d)


def _joint(side):
    return FULL.tokens(side) + FULL.text_tokens


def _pieces():
    """Each piece's row, seconds and tags; products near the peak, the rest at a share of the copy rate."""
    d = FULL.config.dim
    yield _piece("square product", "ceiling", "eager", 8192, 2 * 8192**3, 6 * 8192**2, 1)
    yield _piece("copy", "ceiling", "eager", 0, 0, 2 << 29, 1)
    yield _piece("modulation vectors", "modulation", "addmm", 1, 12 * d * d, 12 * d * d, 0.8)
    for tokens in (*map(FULL.tokens, FULL.forward_sides), FULL.text_tokens):
        for k, n in ((d, d), (d, 3 * d), (d, 4 * d), (4 * d, d)):
            for way, share in (("matmul", 0.9), ("matmul + bias", 0.75), ("addmm", 0.85)):
                size = 2 * (tokens * k + n * k + tokens * n)
                yield _piece(f"product {k} to {n}", "product", way, tokens, 2 * tokens * n * k, size, share)
        if tokens != FULL.text_tokens:
            joint = tokens + FULL.text_tokens
            yield _piece("attention", "attention", "eager", tokens, 4 * d * joint**2, 8 * d * joint, 0.55)
            yield _piece(
                "RMS norm, RoPE, joining", "rope and join", "fast kernel", tokens, *_size(joint * d, 17, 6), 0.8
            )
        yield _piece("joining the streams", "join", "eager", tokens, *_size(tokens * d, 0, 2), 0.6)
        fused = "gated add, layer norm, modulate"
        yield _piece(fused, "gate and norm", "fast kernel", tokens, *_size(tokens * d, 11, 4), 0.85)
        for name, group, flops, passes in (
            ("layer norm and modulate", "norm", 8, 2),
            ("gated add", "gate", 2, 3),
            ("GELU", "gelu", 36, 8),
            ("RMS norm and RoPE", "rope", 7, 2),
        ):
            for way, share in (("eager", 0.12), ("mx.compile", 0.3), ("fast kernel", 0.9)):
                if (group, way) != ("rope", "fast kernel"):
                    yield _piece(name, group, way, tokens, *_size(tokens * d, flops, passes), share)


def _size(elements, flops, passes):
    return flops * elements, 2 * passes * elements


def _piece(name, group, way, tokens, flops, nbytes, share):
    tags = {"piece": name, "group": group, "way": way, "tokens": tokens}
    seconds = max(flops / PEAK, nbytes / COPY) / share
    return {"kind": "piece", **tags, "flops": flops, "nbytes": nbytes, "chained": True}, seconds, tags
