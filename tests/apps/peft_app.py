"""A Flower app that fine-tunes adapters with peft, as Flower's own example for language models does it.

The arrays of its messages are those of `get_peft_model_state_dict`: the adapters and the new head, never the base.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from tests.apps import lazily
from torch import Tensor, nn

peft, transformers = lazily.loaded("peft"), lazily.loaded("transformers")

WORDS, LENGTH = 60, 12


@cache
def base() -> nn.Module:
    """The pretrained model of everybody: here a draw, and a fine thing to adapt all the same."""
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def get_model(rank: int = 4) -> nn.Module:
    torch.manual_seed(4)
    config = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=rank, lora_alpha=16, target_modules=["query", "value"])
    return peft.get_peft_model(copy.deepcopy(base()), config)


def load_data(partition: int) -> tuple[Tensor, Tensor]:
    """Sentences of which the label says whether the words come from the first or the second half."""
    draw = torch.Generator().manual_seed(partition)
    labels = torch.randint(2, (64,), generator=draw)
    other = torch.rand((64, LENGTH), generator=draw) < 0.2
    half = (labels[:, None] ^ other.long()) * (WORDS // 2)
    return half + torch.randint(WORDS // 2, (64, LENGTH), generator=draw), labels


def accuracy(arrays: ArrayRecord, rank: int = 4) -> float:
    model = get_model(rank).eval()
    peft.set_peft_model_state_dict(model, arrays.to_torch_state_dict())
    ids, labels = load_data(1_000)
    with torch.no_grad():
        return float((model(input_ids=ids).logits.argmax(dim=1) == labels).float().mean())


def client_app(mods: Sequence[Mod] = (), ranks: Sequence[int] = (4,)) -> ClientApp:
    """The client's app.

    Args:
        mods: Of Flower.
        ranks: Rank of the adapters of each client, in turn.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        client: Any = context.node_config["partition-id"]
        model = get_model(ranks[client % len(ranks)])
        peft.set_peft_model_state_dict(model, msg.content["arrays"].to_torch_state_dict())
        ids, labels = load_data(client)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        model.train()
        for batch in torch.randperm(len(labels)).split(16):
            optimizer.zero_grad()
            loss = model(input_ids=ids[batch], labels=labels[batch]).loss
            loss.backward()
            optimizer.step()
        record = ArrayRecord(peft.get_peft_model_state_dict(model))
        metrics = MetricRecord({"train_loss": float(loss), "num-examples": len(labels)})
        return Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=msg)

    return app
