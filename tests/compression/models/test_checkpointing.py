"""Gradient checkpointing: the same gradients, statistics and draws, and less that is kept for the backward pass."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from fedpress.compression.models.checkpointing import NoBlocks, blocks, checkpointing


class Block(nn.Module):
    """A residual block with batch normalization and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(0.3), nn.Linear(24, 6))

    def forward(self, features: Tensor, *, scale: float = 1.0) -> Tensor:
        return features + scale * self.inner(features)  # type: ignore[no-any-return]


class Stacked(nn.Module):
    """Blocks in a list, called with an argument by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(6))
        self.head = nn.Linear(6, 2)

    def forward(self, features: Tensor) -> Tensor:
        for block in self.blocks:
            features = block(features, scale=0.5)
        return self.head(features)  # type: ignore[no-any-return]


INPUTS = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, again: bool, inputs: Tensor = INPUTS) -> tuple[dict[str, Tensor], int]:
    """Return gradients and buffers after a backward pass, and the bytes kept for it."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(5)
    model.train()
    manager: AbstractContextManager[None] = checkpointing(model) if again else nullcontext()
    with manager, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = model(inputs)
        value = (value if isinstance(value, Tensor) else value.logits).square().mean()
        held = sum(kept.values())
        value.backward()
    found = {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in model.named_buffers()}, held


@pytest.mark.parametrize("make", [Stacked, lambda: nn.Sequential(*(Block() for _ in range(4)), nn.Linear(6, 2))])
def test_gradients_running_statistics_and_draws_are_the_same_and_less_is_kept(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make()
    twin = make()
    twin.load_state_dict(model.state_dict())
    plain, much = run(model, again=False)
    saved, little = run(twin, again=True)
    assert plain.keys() == saved.keys()
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, rtol=0, atol=0, msg=name)
    assert little < 0.5 * much
    assert not any("forward" in vars(module) for module in twin.modules())  # left as it was


def test_blocks_are_whole_layers_of_stacks_and_not_what_is_inside() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(
        nn.Embedding(9, 8), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(8, 2)
    )
    assert blocks(model) == list(model[1].layers)
    stages = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()))
    assert blocks(stages) == [block for stage in stages for block in stage]
    assert blocks(nn.Sequential(nn.Linear(1, 1), nn.ReLU())) == []


def test_without_blocks_there_is_an_error_that_says_what_is_needed() -> None:
    with pytest.raises(NoBlocks, match="Sequential has no block to compute again.*ModuleList or Sequential"):
        with checkpointing(nn.Sequential(nn.Linear(1, 1), nn.ReLU())):
            pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what transformers imports
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_model_of_hugging_face_by_its_own_switch_inside_another_module_as_well(family: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra text-models")
    sizes = {
        "bert": {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32},
        "gpt2": {"n_layer": 3, "n_embd": 8, "n_head": 2},
        "llama": {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32},
    }
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    configuration = transformers.AutoConfig.for_model(family, vocab_size=30, **sizes[family], **special)
    kind = transformers.AutoModelForSequenceClassification if family == "bert" else transformers.AutoModelForCausalLM

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = kind.from_config(configuration)

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(input_ids=ids).logits  # type: ignore[no-any-return]

    ids = torch.randint(2, 30, (4, 12), generator=torch.Generator().manual_seed(0))
    model, twin = Wrapped(), Wrapped()
    plain, much = run(model, again=False, inputs=ids)
    saved, little = run(twin, again=True, inputs=ids)
    for name, value in plain.items():
        torch.testing.assert_close(saved[name], value, msg=name)
    assert little < 0.8 * much
    assert not any(getattr(module, "gradient_checkpointing", False) for module in twin.modules())
