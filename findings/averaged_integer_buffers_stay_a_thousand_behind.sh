#!/usr/bin/env bash
# torch.optim.swa_utils.AveragedModel with use_buffers=True and an exponential moving average.
#
# One would guess: an integer buffer, such as the number of batches that a BatchNorm has seen, is
# copied, or follows the model as the weights do.
# What happens: each average is rounded towards zero, so a counter stands still until the model is
# ahead by 1 / (1 - decay), and stays that far behind: a thousand with a decay of 0.999. In a shorter
# run it never moves. Lightning's EMAWeightAveraging averages buffers by default, so its checkpoints
# hold such counters.
# Seen with torch 2.13.0 and lightning 2.6.6. Source: this run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet numpy==2.4.6 torch==2.13.0 lightning==2.6.6
cd "$folder"
env/bin/python - <<'PYTHON'
import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.utils.data import DataLoader

print("torch", torch.__version__, "lightning", lightning.__version__)


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
model = Model()
average = EMAWeightAveraging()
trainer = lightning.Trainer(
    max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[average],
)
counts = []


class Watch(lightning.Callback):
    def on_train_batch_end(self, trainer, module, *_):
        averaged = average._average_model.module.net[1]
        counts.append((int(module.net[1].num_batches_tracked), int(averaged.num_batches_tracked)))


trainer.callbacks.append(Watch())
trainer.fit(model, DataLoader(torch.randn(4800, 2), batch_size=4))
print("batches seen by the model and by its average:", counts[0], counts[199], counts[-1])
assert counts[199] == (200, 1), counts[199]
assert counts[-1] == (1200, 201), counts[-1]
PYTHON
