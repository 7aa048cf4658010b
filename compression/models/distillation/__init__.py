"""Knowledge distillation: training a student on a teacher's answers.

`distill.distill` trains, with the loss in `loss` and the options in `settings`. Teachers: `teachers` (one model or an
ensemble) and `teacher_assistants` (models of sizes between). Further losses: `hints` on the teacher's activations and
attention, `early_exits` of the student; `stages` finds the layers for both. Examples: `class_balance`, `data_free`
(inputs made from the teacher) and `sequence_level` (sequences that it writes).
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
