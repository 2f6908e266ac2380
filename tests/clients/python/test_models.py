"""The list of models."""


def test_models(client, model):
    listed = client.models.list()
    assert listed.object == "list"
    assert model in [entry.id for entry in listed.data]
    one = client.models.retrieve(model)
    assert (one.id, one.object) == (model, "model")
    assert one.created > 0 and one.owned_by
