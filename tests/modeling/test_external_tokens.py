import socket
import subprocess
import sys

import pytest
import torch

from contextseg.modeling.external_tokens import MOMENTUM, LearnedTokens, MomentumTokens

IGNORED = 255

# One of two processes, each with its half of a batch; the first leaves its tokens.
HALF = """
import sys, torch
import torch.distributed as dist
from contextseg.modeling.external_tokens import MomentumTokens

rank, folder, address = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
inputs = torch.load(f"{folder}/inputs.pt")
memory = MomentumTokens(4, 3)
memory.class_tokens.copy_(inputs["tokens"])
memory.update(inputs["features"][rank::2], inputs["labels"][rank::2], 255)
if rank == 0:
    torch.save(memory.class_tokens, f"{folder}/tokens.pt")
dist.barrier()
dist.destroy_process_group()
"""


def tokens():
    torch.manual_seed(0)
    return MomentumTokens(num_labels=4, dim=3)


def test_momentum_tokens_move_to_the_mean_of_their_class():
    memory, features = tokens(), torch.randn(2, 3, 4, 4)
    labels = torch.randint(0, 2, (2, 4, 4))
    before = memory.class_tokens.clone()
    memory.update(features, labels, IGNORED)
    for label in range(2):
        mean = features.movedim(1, -1)[labels == label].mean(0)
        expected = MOMENTUM * before[label] + (1 - MOMENTUM) * mean
        torch.testing.assert_close(memory.class_tokens[label], expected)


def test_classes_that_are_absent_or_ignored_keep_their_tokens():
    memory = tokens()
    before = memory.class_tokens.clone()
    memory.update(torch.randn(1, 3, 2, 2), torch.tensor([[[1, IGNORED], [IGNORED, IGNORED]]]), IGNORED)
    assert (memory.class_tokens == before).all(dim=1).tolist() == [True, False, True, True]


def test_features_take_the_label_that_is_nearest():
    memory, labels = tokens(), torch.zeros(1, 6, 6, dtype=torch.long)
    labels[:, 1::3, 1::3] = 3  # the centers of the cells of a grid of 2 x 2
    before = memory.class_tokens.clone()
    memory.update(torch.ones(1, 3, 2, 2), labels, IGNORED)
    assert (memory.class_tokens == before).all(dim=1).tolist() == [True, True, True, False]


def test_momentum_tokens_are_saved():
    memory, fresh = tokens(), MomentumTokens(4, 3)
    memory.update(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), IGNORED)
    fresh.load_state_dict(memory.state_dict())
    assert torch.equal(fresh.class_tokens, memory.class_tokens)
    assert list(memory.parameters()) == []


def test_an_update_between_forward_and_backward_leaves_the_gradient():
    memory, weight = tokens().train(), torch.ones(3, requires_grad=True)
    scores, _ = memory()
    loss = (scores * weight).sum()
    expected = scores.sum(dim=0).clone()
    memory.update(torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long), IGNORED)
    loss.backward()
    torch.testing.assert_close(weight.grad, expected)


def test_coupled_tokens_are_one_parameter():
    coupled = LearnedTokens(4, 3, decouple=False)
    assert len(list(coupled.parameters())) == 1
    assert coupled()[0] is coupled()[1]
    assert len(list(LearnedTokens(4, 3, decouple=True).parameters())) == 2


@pytest.mark.processes
def test_two_processes_move_their_tokens_as_one_would(tmp_path):
    memory, features = tokens(), torch.randn(3, 3, 4, 4)
    labels = torch.randint(0, 3, (3, 4, 4))
    labels[1] = 1  # all that the second process sees
    inputs = {"tokens": memory.class_tokens, "features": features, "labels": labels}
    torch.save(inputs, tmp_path / "inputs.pt")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
    commands = [[sys.executable, "-c", HALF, str(rank), str(tmp_path), address] for rank in range(2)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    memory.update(features, labels, IGNORED)
    torch.testing.assert_close(torch.load(tmp_path / "tokens.pt"), memory.class_tokens)
