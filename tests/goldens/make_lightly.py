"""Prints lightly.json: values of lightly's DINOLoss and IBOTPatchLoss (1.6.0) on random scores.

Run once, where lightly is installed: python tests/goldens/make_lightly.py > tests/goldens/lightly.json
"""

import json

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss

torch.manual_seed(0)
K, B, VIEWS = 12, 3, 4
dino = DINOLoss(K)
dino.center.copy_(0.3 * torch.randn(1, 1, K))
teacher, student = torch.randn(1, B, K), torch.randn(VIEWS, B, K)
before = dino.center.clone()
# Its diagonal, the teacher's own view seen by the student, does not count: so a view for that comes first.
loss = dino([teacher[0]], [torch.zeros(B, K), *student])
cases = {
    "dino": {
        "teacher": teacher.tolist(),
        "student": student.tolist(),
        "centre": before[0].tolist(),
        "centre_after": dino.center[0].tolist(),
        "teacher_temperature": dino.teacher_temp,
        "student_temperature": dino.student_temp,
        "loss": float(loss),
    }
}
ibot = IBOTPatchLoss(K)
ibot.center.center.copy_(0.3 * torch.randn(1, K))
before = ibot.center.value.clone()
mask = torch.zeros(B, 4, 4, dtype=torch.bool)
counts = [8, 3, 11]
for image, count in zip(mask, counts, strict=True):
    image.view(-1)[torch.randperm(16)[:count]] = True
teacher, student = torch.randn(sum(counts), K), torch.randn(sum(counts), K)
loss = ibot(teacher, student, mask)
cases["ibot"] = {
    "teacher": teacher.tolist(),
    "student": student.tolist(),
    "centre": before.tolist(),
    "centre_after": ibot.center.value.tolist(),
    "masked_of_each": counts,
    "teacher_temperature": ibot.teacher_temp,
    "student_temperature": ibot.student_temp,
    "loss": float(loss),
}
print(json.dumps(cases))
