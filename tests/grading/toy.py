"""A tiny assignment for the tests of the builder and of the grader."""
from submitting import write

import assignments  # isort: skip (from solutions/, which submitting puts on the path)

SOURCE = '''\
# %% [markdown]
# # Toy

# %% tags=["setup"]
# set-up: filled in by notebooks/build.py

# %%
from clip_adapter_lite.checks import check

# %% [markdown]
# ### Exercise 1 · Blend

# %% nbgrader={"solution": "blend"}
def blend(feature: float, adapted: float, alpha: float) -> float:
    """Blend two numbers."""
    ### BEGIN SOLUTION
    mixed = alpha * adapted + (1 - alpha) * feature
    return mixed
    ### END SOLUTION

# %% nbgrader={"visible": "blend", "points": 20}
check("blend(4, 8, 0.25)", blend(4.0, 8.0, 0.25), 5.0, {"α and 1 − α are swapped": 7.0})

# %% nbgrader={"hidden": "blend", "points": 30}
for _f, _a, _alpha, _right in zip([1.0, 3.0], [2.0, -1.0], [0.5, 0.75], [1.5, 0.0]):
    assert -1e-9 < blend(_f, _a, _alpha) - _right < 1e-9, "hidden: blend"

# %% nbgrader={"solution": "double"}
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return x * 2
    ### END SOLUTION

# %% nbgrader={"visible": "double", "points": 10}
check("double(2)", double(2.0), 4.0, {"that is the square root": 1.41421356})

# %% nbgrader={"hidden": "double", "points": 30}
for _x in (0.5, -3.0):
    assert double(_x) == 2 * _x, "hidden: double"

# %% [markdown] nbgrader={"written": "why", "points": 10}
# ### BEGIN SOLUTION
# Because it is blended.
# ### END SOLUTION
'''


def toy_course(root, text: str = SOURCE):
    """The source notebook of `text`, which now stands as 1_toy in the course in the folder `root`."""
    source = root / "1_toy.py"
    source.write_text(text, encoding="utf-8")
    notebook = assignments.source_notebook(source)
    write(notebook, root / "solutions" / "1_toy" / "1_toy.ipynb")
    return notebook
