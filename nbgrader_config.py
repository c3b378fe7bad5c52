"""nbgrader's settings: its commands, run in this folder, read them, and so do `make exercises` and `make grade`."""
c = get_config()  # noqa: F821 (nbgrader gives it)

c.CourseDirectory.course_id = "clip-adapter-lite"
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "exercises"
# Every file beside a source notebook goes into the hand-out, so nothing that could hold an answer may be copied.
c.CourseDirectory.ignore = [".ipynb_checkpoints", "*.pyc", "__pycache__", "feedback", "*.py", "*.toml", "*.md"]

c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("Write your code here in place of this line, '
                                        'run the cell, then run the check below it.")'}
c.ClearSolutions.text_stub = "*Write your answer here, in place of this line.*"

c.Execute.timeout = 60  # seconds a cell, for plain `nbgrader autograde`; `make grade` has limits of its own
c.Execute.iopub_timeout = 60
