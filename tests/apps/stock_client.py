"""A plain Flower ClientApp in PyTorch, as Flower's own quick start writes it."""

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from stock_task import load_data, make_model

app = ClientApp()


@app.train()
def train(msg: Message, context: Context) -> Message:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = make_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    images, labels = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    optimizer = torch.optim.SGD(model.parameters(), lr=msg.content["config"]["lr"])
    model.train()
    for _ in range(3):
        for batch in torch.randperm(len(labels)).split(32):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
    metrics = MetricRecord({"train_loss": float(loss), "num-examples": len(labels)})
    return Message(content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=msg)


@app.evaluate()
def evaluate(msg: Message, context: Context) -> Message:
    model = make_model()
    model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    images, labels = load_data(context.node_config["partition-id"], context.node_config["num-partitions"])
    model.eval()
    with torch.no_grad():
        right = float((model(images).argmax(dim=1) == labels).float().mean())
    metrics = MetricRecord({"eval_acc": right, "num-examples": len(labels)})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=msg)
