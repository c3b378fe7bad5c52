"""How steps and rate of the gradient methods were chosen: accuracy on the bundled banks' validation parts.

    python tests/benchmarks/recipes.py

The whole validation part judges (it holds the few images that α is selected on); test splits are not touched. About ten
minutes on two cores.
"""
from statistics import mean

import torch
from joblib import Parallel, delayed
from rich.console import Console
from rich.table import Table

import clip_adapter_lite as cal

BANKS, SHOTS, SEEDS = ("caltech101", "pacs-cartoon", "sun18", "rsscn7"), (1, 16), (1, 2)
RECIPES = [cal.CLIPAdapter(steps=s, rate=r) for s, r in ((60, 1e-3), (60, 2e-3), (60, 3e-3), (120, 1e-3), (240, 1e-3))] + \
          [cal.CoOp(steps=s, rate=r) for s, r in ((100, 3e-3), (100, 1e-2), (100, 3e-2))]


def accuracy(recipe: cal.Method, bank: cal.FeatureBank, shots: int) -> float:
    torch.set_num_threads(1)
    return mean(recipe.fit(bank.episode(shots, seed)).accuracy(bank.splits["val"]) for seed in SEEDS)


def main():
    cells = [(recipe, cal.FeatureBank.load(name), shots) for recipe in RECIPES for name in BANKS for shots in SHOTS]
    found = Parallel(n_jobs=-1)(delayed(accuracy)(*cell) for cell in cells)
    table = Table("recipe", *(f"{name}, {shots}" for name in BANKS for shots in SHOTS), "mean",
                  title=f"Validation accuracy in %, mean of seeds {', '.join(map(str, SEEDS))}; pocket CLIP's features")
    width = len(BANKS) * len(SHOTS)
    for i, recipe in enumerate(RECIPES):
        row = found[i * width:(i + 1) * width]
        cells = (f"{100 * value:.1f}" for value in (*row, mean(row)))
        table.add_row(f"{recipe.name}, {recipe.steps} steps at {recipe.rate:g}", *cells)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
