"""Training on another device than the CPU: the same answers, and a host that waits for none of its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from other_device import CPU, ELSEWHERE, OtherDevice, There

from fedplatform.core.compute import Compute, ComputeError
from fedplatform.core.seeding import torch_generator
from fedplatform.data.device_pixels import DevicePixels, Pictures, images_on, placed
from fedplatform.data.images import to_images
from fedplatform.data.stored_pixels import StoredPixels
from fedplatform.defence import DiffusionPurifier, OneShot
from fedplatform.defence.purified_objective import Purified
from fedplatform.defence.tampering_objective import Tampering
from fedplatform.learning.models import MODELS, Classifier, NoisePredictor, SmallCnn
from fedplatform.learning.training import ALGORITHMS, AUGMENTATIONS, OBJECTIVES, LocalTraining, PersonalState, Trainer

THERE = Compute(str(ELSEWHERE))
HERE = Compute("cpu")
SIDE = 16
STREAMED = replace(THERE, scans_share=0.0)


def victim() -> torch.nn.Module:
    torch.manual_seed(0)
    return Classifier(SmallCnn(width=2)(channels=1, num_classes=2, size=SIDE)).eval().requires_grad_(False)


def purified() -> Purified:
    torch.manual_seed(0)
    network = NoisePredictor(width=8)(channels=1, num_classes=2, size=SIDE).eval().requires_grad_(False)
    return Purified(DiffusionPurifier(network, OneShot()), least_depth=20, most_depth=60, epsilon=0.02)


def changes_of(case: str) -> dict[str, object]:
    generative = {"objective": OBJECTIVES["generative"](), "algorithm": ALGORITHMS["fedavg"]()}
    cases: dict[str, dict[str, object]] = {
        "plain": {},
        "weight decay by AdamW": {"optimiser": "adamw", "learning_rate": 1e-3, "clip": 1.0},
        "shown by groups": {"sampling": "groups"},
        "adversarial": {"objective": OBJECTIVES["adversarial"](epsilon=0.02, steps=2)},
        "trades": {"objective": OBJECTIVES["trades"](epsilon=0.02)},
        "purified": {"objective": purified()},
        "tampering": {"objective": Tampering(victim()), "model": MODELS["residual_sensor"]()},
        "autoencoder": {"model": MODELS["masked_autoencoder"](width=32, depth=1, decoder_width=16), **generative},
        "noise predictor": {"model": NoisePredictor(width=8), **generative},
        **{name: {"algorithm": kind()} for name, kind in ALGORITHMS.items()},
        "scaffold": {"algorithm": ALGORITHMS["scaffold"](), "momentum": 0.0},
        **{name: {"augmentation": kind()} for name, kind in AUGMENTATIONS.items()},
    }
    return cases[case]


CASES = [
    *("plain", "weight decay by AdamW", "shown by groups", "adversarial", "trades", "purified", "tampering"),
    *("autoencoder", "noise predictor", *ALGORITHMS, *AUGMENTATIONS),
]


def trainer(compute: Compute, case: str = "plain") -> Trainer:
    values: dict[str, object] = {
        "model": SmallCnn(width=2),
        "algorithm": ALGORITHMS["fedbn_p"](),
        "channels": 1,
        "num_classes": 2,
        "size": SIDE,
        "rounds": 3,
        "epochs": 1,
        "batch_size": 8,
        "learning_rate": 0.05,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "seed": 0,
        "compute": compute,
    }
    return Trainer(LocalTraining(**{**values, **changes_of(case)}))  # type: ignore[arg-type]


def scans() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (20, 1, SIDE, SIDE), dtype=np.uint8), draw.integers(0, 2, 20)


def nothing() -> None:
    """Nobody watches."""


def one_round(
    trainer: Trainer, images: Pictures | None = None, *, each_step: Callable[[], object] = nothing
) -> dict[str, object]:
    """All that a hospital asks of its trainer in a round; ``each_step`` is called before every step of training."""
    pixels, labels = scans()
    pictures = placed(pixels, trainer.compute) if images is None else images
    weights, personal = trainer.initial_weights, dict(trainer.initial_personal)

    def steps(stream: str) -> dict[str, object]:
        generator = torch_generator(0, stream)
        common = {"labels": labels, "groups": np.arange(20) // 2, "round_number": 1}
        common |= {"should_stop": lambda: bool(each_step())}
        return {"images": pictures, "generator": generator, **common}

    delta, state, loss = trainer.fit(weights, personal, **steps("batches"))  # type: ignore[arg-type]
    state = trainer.fit_own(weights, state, **steps("own"))  # type: ignore[arg-type]
    settled = trainer.settle(weights + delta, state, pictures, labels)
    return {
        "delta": delta,
        "loss": loss,
        "personal": {name: value.numpy() for name, value in settled.items()},
        "probabilities": trainer.predict(weights + delta, settled, pictures),
        "plain loss": trainer.plain_loss(weights + delta, settled, pictures, labels),
    }


def same(there: dict[str, object], here: dict[str, object]) -> None:
    for name, value in here.items():
        if isinstance(value, dict):
            same(there[name], value)  # type: ignore[arg-type]
        else:
            np.testing.assert_allclose(there[name], value, rtol=1e-4, atol=1e-5, err_msg=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", CASES)
def test_a_round_on_another_device_gives_what_it_gives_on_the_cpu_and_no_step_waits(case: str) -> None:
    waits: list[int] = []
    with OtherDevice() as card:
        there = one_round(trainer(THERE, case), each_step=lambda: waits.append(len(card.waits)))
    assert card.computed > 100, "the network ran there"
    same(there, one_round(trainer(HERE, case)))
    # Weights and losses are fetched when training ends: once where nothing else is trained, and never between steps.
    trainings = 1 + (case in ("ditto", "apfl"))
    assert len(waits) >= 3 * trainings
    assert len(set(waits)) == trainings, f"the host waited within a training: {card.waits}"


def test_scans_that_do_not_fit_come_batch_by_batch_with_the_same_result(tmp_path: Path) -> None:
    pixels, _ = scans()
    with OtherDevice():
        assert isinstance(placed(pixels, THERE), DevicePixels)
        assert placed(pixels, STREAMED) is pixels
        kept = one_round(trainer(THERE))
        streamed = one_round(trainer(STREAMED))
        on_disk = one_round(trainer(STREAMED), StoredPixels([pixels.data], pixels.shape, folder=tmp_path))
    same(streamed, kept)
    same(on_disk, kept)


def test_pictures_on_a_device_are_the_pictures() -> None:
    pixels, _ = scans()
    rows = np.array([3, 1, 4, 1])
    with OtherDevice() as card:
        there = placed(pixels, THERE)
        assert isinstance(there, DevicePixels)
        assert (len(there), there.shape) == (len(pixels), pixels.shape)
        before = len(card.waits)
        some, first = there[torch.from_numpy(rows).to(ELSEWHERE)], there[:5]
        assert isinstance(images_on(some, THERE), There)
        assert len(card.waits) == before
        np.testing.assert_array_equal(np.asarray(there), pixels)
        np.testing.assert_array_equal(np.asarray(there[rows]), pixels[rows])
        np.testing.assert_array_equal(np.asarray(first), pixels[:5])
        np.testing.assert_array_equal(np.stack(list(first)), pixels[:5])
        for shown, expected in ((some, pixels[rows]), (pixels, pixels)):
            np.testing.assert_array_equal(images_on(shown, THERE).cpu().numpy(), to_images(expected).numpy())


def test_a_model_that_is_handed_out_is_on_the_cpu() -> None:
    with OtherDevice():
        learner = trainer(THERE, "apfl")
        one_round(learner)
        model = learner.model_of(learner.initial_weights, learner.initial_personal)
        assert {value.device for value in model.state_dict().values()} == {CPU}
        assert {value.device for value in learner.model.state_dict().values()} == {ELSEWHERE}


def test_a_network_goes_to_its_device_when_it_is_first_used() -> None:
    # Whoever only wants the layout of a network must not need the device.
    absent = trainer(Compute("cuda:99"))
    assert absent.layout == trainer(HERE).layout
    with pytest.raises(ComputeError, match=r"^--device cuda:99: this machine has "):
        one_round(absent)


@pytest.mark.parametrize("case", CASES)
def test_training_in_bfloat16_stays_close_to_float32(case: str) -> None:
    plain, halved = one_round(trainer(HERE, case)), one_round(trainer(replace(HERE, precision="bf16"), case))
    assert halved["loss"] != plain["loss"], "something was rounded"
    assert halved["loss"] == pytest.approx(plain["loss"], rel=0.1)
    assert halved["delta"].dtype == np.float32  # type: ignore[attr-defined]
    assert np.isfinite(halved["delta"]).all()  # type: ignore[call-overload]
    states: PersonalState = trainer(HERE, case).initial_personal
    assert {name: value.dtype for name, value in halved["personal"].items()} == {  # type: ignore[attr-defined]
        name: value.numpy().dtype for name, value in states.items()
    }
