"""What the double of the API says of a run's experts in JSON: summary and table. Invented; a test double only."""

from typing import Any

from fake_training import Training


def summary_view(training: Training) -> dict[str, Any]:
    """The JSON tiles and sentence of the experts page."""

    def tile(label: str, value: str, unit: str, context: str, level: str = "ok") -> dict[str, str]:
        return {"label": label, "value": value, "unit": unit, "context": context, "level": level}

    return {
        "run": training.run,
        "attempt": 2,
        "step": training.step(),
        "age_s": 0.8,
        "layers": training.layers,
        "experts": training.experts,
        "slots": training.slots,
        "top_k": 1,
        "floor_cv": training.floor(),
        "simulated": training.simulated,
        "stale": False,
        "sentence": {
            "lead": "Layer 23 sends 2.1× its share to expert 7",
            "rest": "since 300 steps. Layer 31 has 2 dead experts; layer 12 oscillates.",
            "level": "fault",
        },
        "tiles": [
            tile("worst layer", "8.2×", "floor · L31", "2 layers above 4×, 14 above 1.5×", "fault"),
            tile("median layer", "1.23×", "floor", "CV 0.058, floor 0.047"),
            tile("dead experts", "2", f"of {training.layers * training.experts}", "L31: 3, 11", "fault"),
            tile("effective experts", "15.7", f"of {training.experts}", "exp(H), worst 12.9 in L31"),
            tile("skip share", "0.01 %", "of tokens", "0.4 % in L02, expected 0", "warn"),
            tile("oscillating", "1", "layer", "L12, period 2.6 steps", "warn"),
            tile("no data", "1", "layer", "L09", "nodata"),
        ],
        "controller": [
            {
                "layer": layer,
                "same_direction": 0.93 if layer == 23 else 0.55,
                "sign_flips": 0.05 if layer == 23 else 0.42,
                "bias_spread": 0.11 if layer == 23 else 0.01,
                "drift": 2.4e-4 if layer == 23 else 1e-5,
            }
            for layer in range(training.layers)
        ],
    }


def table_view(training: Training, step: int | None) -> dict[str, Any]:
    """A row a layer with some of its figures; of layer 23 the entropy is low, of none anything is known of logits."""

    def figure(value: float | None, chance: float | None) -> dict[str, float | None]:
        return {"step": value, "window": value, "chance": chance}

    rows = [
        {
            "layer": layer,
            "figures": {
                "cv_floor": figure(1.1, 1.0),
                "gini": figure(0.031, 0.029),
                "entropy": figure(0.93 if layer == 23 else 0.9991, 0.9992),
                "bias_spread": {"step": 0.0123, "window": 0.0119, "chance": None},
                "z_loss": figure(None, None),
            },
        }
        for layer in range(training.layers)
    ]
    return {"step": training.step() if step is None else step, "facts_step": None, "by_layer": rows}
