"""Training a student on a teacher's answers, and what else helps it learn.

`distill` trains; `teachers` and `teacher_assistants` are whom it learns from; `hints` and `early_exits` take from
inside the teacher; `class_balance`, `data_free` and `sequence_level` are about the examples; `stages` is one phase
after another.
"""

__all__ = [
    "class_balance",
    "data_free",
    "distill",
    "early_exits",
    "hints",
    "loss",
    "sequence_level",
    "settings",
    "stages",
    "teacher_assistants",
    "teachers",
]
