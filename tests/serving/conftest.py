"""A server on a tiny random model, spoken to without a network."""

from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from tiny_published import HashEncoder, save_base, save_published, tiny_config

from t2l_jax import load
from t2l_jax import model as model_module
from t2l_jax.serving import engine as engine_module
from t2l_jax.serving.adapters import Registry
from t2l_jax.serving.app import Server, application
from t2l_jax.serving.engine import Engine, Limits

SMALL = Limits(rows=8, context=64, slots=8 * 64, queue=32)
RANK = 3  # of the server; the hypernetwork's is 2


@pytest.fixture(scope="package")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    return save_published(folder / "model", tiny_config(save_base(folder / "base")))


@pytest.fixture(scope="package")
def model(published):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "load_encoder", lambda source, **_: HashEncoder())
        model = load(published)
        assert model.encoder.name == "hash"
    return model


@pytest.fixture(scope="package")
def llm(model):
    return model.load_base()


@pytest.fixture
def serve(model, llm, monkeypatch, tmp_path):
    """Make a server and a client of it; they end with the test."""
    monkeypatch.setattr(engine_module, "FEWEST_SLOTS", 16)
    clients = []

    def make(limits=SMALL, key=None, folder=None, seconds=60.0, most=None, stop_ids=None):
        spec = replace(model.config.lora, rank=RANK)
        engine = Engine(llm.decoder, llm.params, llm.stop_ids if stop_ids is None else stop_ids, spec, limits)
        server = Server(llm, engine, Registry(model, llm.config, spec, most), folder, seconds)
        client = TestClient(application(server, key), raise_server_exceptions=False)
        client.server = server
        client.__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)
        assert not client.server.engine.alive
        assert not client.server.registry.alive


@pytest.fixture
def client(serve):
    return serve()
