"""Promises of what happens to observations before a released pi0 sees them: images, prompts, absent cameras.

Expected numbers are written out here from openpi's and LeRobot's published functions.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pi0_directories import unsay
from PIL import Image
from random_policy import build_half, build_policy, random_observations

from interp.policies import Policy, load_policy
from interp.policies.preprocessing import Images, Preprocessing, Statistics
from testbed import TINY_PI0

SIZES = [(480, 640), (640, 480), (37, 91), (224, 100), (224, 224), (3, 500)]


def prepared(images: Images, size: int = 224, **fields: object) -> Preprocessing:
    one = Statistics((0.0,), (1.0,))
    return Preprocessing(("a",), size, 1, 1, 48, 1, one, one, images=images, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_images_are_resized_as_openpi_does(height: int, width: int) -> None:
    """openpi_client/image_tools.py, `_resize_with_pad_pil`."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    ratio = max(width / 224, height / 224)
    inner_height, inner_width = int(height / ratio), int(width / ratio)
    expected = Image.new("RGB", (224, 224), 0)
    if inner_height:
        resized = Image.fromarray(image).resize(
            (inner_width, inner_height), resample=Image.Resampling.BILINEAR
        )
        expected.paste(resized, (int((224 - inner_width) / 2), int((224 - inner_height) / 2)))
    ours = prepared("openpi").pixels(image)
    theirs = torch.tensor(np.asarray(expected)).permute(2, 0, 1) / 255 * 2 - 1
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize(("images", "border"), [("lerobot", -1.0), ("lerobot-0.5", 0.0)])
def test_images_are_resized_as_lerobot_does(height: int, width: int, images: Images, border: float) -> None:
    """lerobot/policies/pi0/modeling_pi0.py of 0.4.4 and of 0.5.1, `resize_with_pad_torch` of images in [0, 1], then
    * 2 - 1."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255
    if (height, width) != (224, 224):
        ratio = max(width / 224, height / 224)
        inner_height, inner_width = int(height / ratio), int(width / ratio)
        pixels = F.interpolate(pixels, (inner_height, inner_width), mode="bilinear").clamp(-1, 1)
        top, rest_y = divmod(224 - inner_height, 2)
        left, rest_x = divmod(224 - inner_width, 2)
        pixels = F.pad(pixels, (left, left + rest_x, top, top + rest_y), value=border)
    torch.testing.assert_close(prepared(images).pixels(image), pixels[0] * 2 - 1, atol=1e-6, rtol=0)


def test_480_by_640_becomes_168_by_224() -> None:
    """Where an order of operations that seems equal gives 167."""
    pixels = prepared("openpi").pixels(np.full((480, 640, 3), 255, np.uint8))
    assert (pixels[0].amax(dim=1) == 1).sum() == 168


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("  Pick_up the\ncube ", "Pick up the cube\n"),
        ("pick up the cube", "pick up the cube\n"),
        ("pick up the cube\n", "pick up the cube\n"),
        ("", "\n"),
    ],
)
def test_prompts_are_cleaned_as_openpi_does(instruction: str, expected: str) -> None:
    """openpi/models/tokenizer.py: strip, underscores and line breaks to spaces, and a line break as the end."""
    assert prepared("openpi", clean_prompt=True, prompt_suffix="\n").prompt(instruction) == expected


def test_lerobots_prompts_only_get_their_line_break() -> None:
    """Pi0NewLineProcessor adds one where there is none."""
    lerobots = prepared("lerobot", prompt_suffix="\n")
    assert lerobots.prompt(" pick_up ") == " pick_up \n"
    assert lerobots.prompt("pick\n") == "pick\n"
    assert prepared("pillow").prompt(" pick_up\n") == " pick_up\n"


def test_what_came_later_does_not_change_what_older_policies_are() -> None:
    """robosteer.json of tiny-pi0 says nothing of it, and neither does what its fingerprint covers."""
    stored = json.loads((Path(TINY_PI0) / "robosteer.json").read_text())
    covered = Preprocessing.read(Path(TINY_PI0), 1).to_json()
    assert covered.keys() == (stored.keys() - {"pretraining"}) | {"prompt_suffix"}
    assert json.loads(json.dumps(covered["norm"])) == stored["norm"]


def test_whole_chunks_are_carried_out_if_robosteer_json_does_not_say(tmp_path: Path) -> None:
    """Of transformers' layout as of openpi's: sampling at every action is nobody's default."""
    directory = build_policy(tmp_path / "policy")
    assert load_policy(directory).spec.execute == 2
    unsay(directory / "robosteer.json", "execute")
    assert load_policy(directory).spec.execute == 6


@pytest.mark.parametrize("images", ["openpi", "lerobot", "lerobot-0.5"])
def test_preparation_is_saved_and_read_back(images: Images) -> None:
    odd = Preprocessing(
        ("a",), 32, 2, 1, 9, 3, Statistics.of_range((0.0, 1.0), (2.0, 1.0)), Statistics((0.0,), (1.0,), 1e-6),
        images=images, clean_prompt=True, prompt_suffix="\n",
    )  # fmt: skip
    assert Preprocessing.from_json(json.loads(json.dumps(odd.to_json()))) == odd


def test_a_dimension_without_a_range_is_what_lerobot_makes_of_it() -> None:
    """normalize_processor.py of 0.4.4 and 0.6.1, `_apply_transform`: the width of such a range is eps."""
    value = torch.tensor([0.0, 1e-7, 0.01, 0.5, -0.5, 1.5707964, -3.2, 170.3, 2.0])
    high, eps = value.clone(), 1e-8
    high[-1] = 5.0  # which has one
    width = torch.where(high == value, eps, high - value)
    statistics = Statistics.of_range(tuple(value.tolist()), tuple(high.tolist()))
    torch.testing.assert_close(statistics.apply(value), torch.full((9,), -1.0))
    for said in (-1.0, -0.9, 0.0, 1.7):
        lerobots = (torch.full((9,), said) + 1) / 2 * width + value
        found = statistics.invert(torch.full((9,), said))
        torch.testing.assert_close(found, lerobots, rtol=1e-6, atol=1e-5)


def test_a_camera_that_is_left_out_is_as_one_that_is_masked(
    policy: Policy, tiny_policy_dir: Path, tmp_path
) -> None:
    """A released pi0 without the right wrist's camera: openpi feeds a black image and masks it, we leave it out."""
    directory = Path(tmp_path / "one")
    policy.save(directory)
    about = json.loads((directory / "robosteer.json").read_text())
    (directory / "robosteer.json").write_text(json.dumps({**about, "cameras": about["cameras"][:1]}))
    one = load_policy(directory)
    seen, noise = random_observations(2), policy.noise(2, seed=0)
    left_out = one.denoise(one.batch(seen), noise)
    batch = policy.batch(seen)
    absent = policy.spec.span(f"image/{policy.spec.cameras[1]}").slice
    batch["pixel_attention_mask"][:, 1] = False
    batch["attention_mask"][:, absent] = 0
    masked = policy.module.sample_actions(noise=noise, **batch)
    torch.testing.assert_close(left_out, masked, atol=1e-5, rtol=1e-4)
    both = policy.denoise(policy.batch(seen), noise)
    assert (both - masked).abs().max() > 1e-3


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_actions_are_normalised_in_single_precision_whatever_the_networks(precision: torch.dtype) -> None:
    """A joint angle of 1.5 rad with a deviation of 0.02: bfloat16's next number after 1.5 is 1.5078."""
    joint = Statistics((1.5,), (0.02,))
    robot = joint.invert(torch.tensor([0.3], dtype=precision))
    assert robot.dtype == torch.promote_types(precision, torch.float32)
    # 2e-5: what the precision makes of 0.3 itself, 2 ** -10, times the deviation
    assert float(robot) == pytest.approx(1.506, abs=2e-5)
    assert float(joint.apply(robot)) == pytest.approx(0.3, abs=1e-3)


def test_a_half_precision_policy_answers_in_the_robots_full_units(tmp_path: Path) -> None:
    policy = load_policy(build_half(tmp_path / "half", torch.bfloat16))
    batch, noise = policy.batch(random_observations(1)), policy.noise(1, 0)
    with torch.no_grad():
        normalised = policy.denoise(batch, noise)[..., :7]
        chunk = policy.sample(batch, noise)
    about = json.loads((tmp_path / "half/robosteer.json").read_text())["norm"]["action"]
    expected = (
        normalised.double() * torch.tensor(about["std"]).double() + torch.tensor(about["mean"]).double()
    )
    assert normalised.dtype == torch.bfloat16
    assert chunk.dtype == torch.float32
    torch.testing.assert_close(chunk.double(), expected, atol=1e-6, rtol=1e-6)
