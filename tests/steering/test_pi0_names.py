"""Promises of the names that exports give a network: those of the released sizes, and of no other."""

from types import SimpleNamespace

from transformers import PI0Config

from interp.policies.spec import TowerSpec
from steering.pi0_files import Network


def network(config: PI0Config) -> Network:
    """Of a policy that is only a configuration: the released one has 3 billion numbers."""
    one = TowerSpec((8,), 1, 8)
    spec = SimpleNamespace(towers={"vlm": one, "expert": one})
    return Network.of(SimpleNamespace(module=SimpleNamespace(config=config), spec=spec))  # type: ignore[arg-type]


def test_the_released_network_has_the_released_names() -> None:
    """transformers' defaults are pi0's sizes."""
    assert network(PI0Config()) == Network("gemma_2b", "gemma_300m", ())


def test_no_other_network_has_them() -> None:
    config = PI0Config()
    config.vlm_config.vision_config.num_hidden_layers = 26
    found = network(config)
    assert found.vlm == "gemma-2048x18x16384x8x1x256"
    assert found.unlike == ("vision siglip-1152x26x16x4304x14",)
    config = PI0Config()
    config.dit_config.num_hidden_layers = 17
    assert network(config).unlike == ("expert gemma-1024x17x4096x8x1x256",)
    config = PI0Config()
    config.vlm_config.text_config.rope_parameters = {"rope_theta": 1e6, "rope_type": "default"}
    assert network(config).unlike == ("vlm default rope 1000000.0, eps 1e-06, gelu_pytorch_tanh",)
