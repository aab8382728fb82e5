import torch

from contextseg.modeling.external_tokens import MOMENTUM, LearnedTokens, MomentumTokens

IGNORED = 255


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
    labels[:, 1::3, 1::3] = 3  # the centres of the cells of a grid of 2 x 2
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
