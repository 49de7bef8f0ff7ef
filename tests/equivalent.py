"""Mutants that do the same as the code, so that no test could notice them, and why: for `mutation.py`."""

SPEED = "the same comes out, more slowly or with more memory"
EQUIVALENT: dict[str, dict[str, dict[tuple[str, str], str]]] = {
    "masks/choose.py": {
        "above = {i: float(caps[i]) for i in free if share[i] > caps[i]}": {
            ("share[i] > caps[i]", "share[i] >= caps[i]"): "a share that equals its cap is fixed at what it has",
        },
    },
    "masks/threshold.py": {
        'if len(rows) > 1 and (sum(sizes) <= JOINED or len(kinds) > 1 or scores[0].device.type != "cpu"):': {
            ("1", "2"): SPEED,
            ("sum(sizes) <= JOINED", "sum(sizes) > JOINED"): SPEED,
            ("sum(sizes) <= JOINED", "sum(sizes) < JOINED"): SPEED,
        },
        "if keep >= held:": {
            ("keep >= held", "keep > held"): "the threshold is the lowest of the alive, so all of them",
        },
        "if not 0 <= rank < inside:": {
            ("0 <= rank < inside", "0 < rank < inside"): SPEED,
        },
        "step = int(total ** (1 / 3) / 2) | 1  # odd, or rows of a power of two would be sampled in the same columns": {
            ("3", "4"): SPEED,
        },
        "slack = 4 * math.sqrt(size * share * (1 - share)) + 8  # four standard deviations of a rank in the sample": {
            ("4", "5"): SPEED,
        },
        "return (float(sample[low]) if low >= 0 else -math.inf), (float(sample[high]) if high < size else math.inf)": {
            ("0", "1"): SPEED,
        },
        'return int(np.count_nonzero(mask.numpy()) if mask.device.type == "cpu" else mask.count_nonzero())': {
            ("mask.device.type == 'cpu'", "mask.device.type != 'cpu'"): SPEED,
        },
    },
    "masks/projections.py": {
        "groups = F.pad(by_input, (0, -by_input.shape[-1] % m), value=-1.0).unflatten(-1, (-1, m))": {
            ("1.0", "2.0"): "anything below 0 is below every absolute value",
        },
        "order = groups.sort(dim=-1, descending=True, stable=True).indices": {
            ("stable=True", "stable=False"): "on the CPU torch sorts stably in any case",
        },
    },
    "layers/flops.py": {
        'if formula is None and hasattr(func, "decompose"):': {
            (
                "formula is None and hasattr(func, 'decompose')",
                "formula is None or hasattr(func, 'decompose')",
            ): "what has a formula has no parts, and what has parts can be decomposed",
        },
        "super().__init__()": {
            ("super().__init__()", "super"): "torch makes what a mode needs when it is entered",
        },
    },
    "train/checkpoints.py": {
        'if not (0 <= progress["step"] <= run.steps and 0 <= progress["epoch"] <= run.epochs):': {
            (
                "0 <= progress['step'] <= run.steps",
                "0 < progress['step'] <= run.steps",
            ): "no checkpoint is written before the first step",
        },
        "run.optimizer.state.clear()": {
            (
                "run.optimizer.state.clear()",
                "pass",
            ): "a checkpoint holds what the optimizer remembers of every parameter that has a memory before it",
        },
    },
    "analysis/compare.py": {
        'near = runs[(density / (1 - row["sparsity"]) - 1).abs() < 0.1].assign(density=density)': {
            (
                "(density / (1 - row['sparsity']) - 1).abs() < 0.1",
                "(density / (1 - row['sparsity']) - 1).abs() <= 0.1",
            ): "no float64 is exactly 0.1 away from 1",
        },
        'side = "above" if points > 0 else "below"': {
            ("points > 0", "points >= 0"): "a difference of 0 has p = 1, and is never claimed",
        },
    },
    "analysis/statistics.py": {
        "elif n > 1:": {("n > 1", "n >= 1"): "of a single pair both are NaN in any case"},
    },
    "criteria/weights.py": {
        "between = {name: (s - low) / ((high - low) or 1.0) for name, s in scores.items()}": {
            ("1.0", "2.0"): "where all scores are alike, 0 is divided",
        },
        "return {name: between[name] + 2 * kept for name, kept in n_of_m(between, self.n, self.m).items()}": {
            ("2", "3"): "scores are an order, and this one is the same",
        },
    },
    "criteria/before_training.py": {
        "largest = max(float(score.max()) for score in scores.values()) or 1.0  # so that float32 holds their order": {
            ("1.0", "2.0"): "where all scores are 0, 0 is divided",
        },
    },
    "criteria/channels.py": {
        "after = norms_after(model, x[:2])": {("2", "3"): SPEED},
        "after = norms_after(model, chosen[0][0][:2])": {("2", "3"): SPEED},
    },
    "criteria/inputs.py": {
        "both = [m.repeat_interleave(groups // len(m), 0) if len(m) < groups else m for m in (before, moment)]": {
            ("len(m) < groups", "len(m) <= groups"): "each group once is the groups themselves",
        },
        "self.uses[name] += 1": {
            ("self.uses[name] += 1", "self.uses[name] -= 1"): "all uses are counted the same way, and only compared",
        },
        "return weight, (some.reshape(1, -1, x.shape[-1]) for some in x.split(16))": {("16", "17"): SPEED},
        "return weight, (unfolded(some) for some in x.split(16))  # of a whole batch they may not fit": {
            ("16", "17"): SPEED,
        },
    },
    "criteria/wanda.py": {
        "weights = {name: w for name, w in canonical_parameters(model).items() if w.ndim > 1}": {
            ("w.ndim > 1", "w.ndim >= 1"): "a bias is not what inputs are multiplied with, and has no score",
        },
    },
    "criteria/curvature.py": {
        "piece = max(2**24 // max(sum(w.numel() for w in weights.values()), 1), 1)": {("1", "2"): SPEED},
    },
    "criteria/quadratic.py": {
        "if 2 * int(gone.count_nonzero()) < len(own):  # what is gone is the smaller matrix: H_KK⁻¹ from H⁻¹": {
            (
                "2 * int(gone.count_nonzero()) < len(own)",
                "2 * int(gone.count_nonzero()) <= len(own)",
            ): "both ways lead to the same costs, and here they take as long",
            (
                "if 2 * int(gone.count_nonzero()) < len(own):",
                "if not 2 * int(gone.count_nonzero()) < len(own):",
            ): SPEED,
        },
    },
}
"""By file: the line as it is, what is changed in it and into what, and why that is no mistake."""
