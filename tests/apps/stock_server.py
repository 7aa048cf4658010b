"""A plain Flower ServerApp with FedAvg, as Flower's own quick start writes it."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from stock_task import accuracy, make_model

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    model = make_model()
    strategy = FedAvg(fraction_train=0.5)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        train_config=ConfigRecord({"lr": 0.1}),
        num_rounds=context.run_config["num-server-rounds"],
    )
    model.load_state_dict(result.arrays.to_torch_state_dict())
    torch.save(model.state_dict(), context.run_config["model-path"])
    ledger = getattr(strategy, "ledger", None)
    report = {
        "accuracy": accuracy(model),
        "evaluations": len(result.evaluate_metrics_clientapp),
        "up": ledger.total(direction="up", kind="update") + ledger.total(direction="up", kind="buffers")
        if ledger
        else None,
        "replies": sum(m["fedpress.replies"] for m in result.train_metrics_clientapp.values()) if ledger else None,
    }
    Path(context.run_config["report-path"]).write_text(json.dumps(report))
