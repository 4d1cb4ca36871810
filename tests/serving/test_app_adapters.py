"""Adapters over HTTP: made, mixed, listed, downloaded, uploaded, loaded, deleted."""

import io
import zipfile
from functools import partial
from urllib.parse import quote

import jax
import numpy as np
from serving_calls import BASE, CHAT, answer, error
from tiny_published import SPEC

from t2l_jax.io.gguf_adapter import load_gguf_adapter
from t2l_jax.io.peft import load_peft, save_peft
from t2l_jax.lora import dense_delta, init_adapter


def test_models_are_the_base_and_named_adapters(client):
    assert client.post("/v1/adapters", json={"name": "two", "description": "Say two."}).status_code == 201
    answer(client, "t2l:Say three.")
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [(each["id"], each["parent"]) for each in models["data"]] == [(BASE, None), ("two", BASE)]
    assert [client.get(f"/v1/models/{name}").json()["id"] for name in (BASE, "two")] == [BASE, "two"]
    error(client.get("/v1/models/three"), 404, "name", "model_not_found")


def test_an_adapter_from_making_to_deleting(client, model):
    made = client.post("/v1/adapters", json={"name": "two words", "description": "Say two"})
    assert made.status_code == 201
    body = made.json()
    assert (body["id"], body["origin"], body["description"], body["rank"]) == (
        "two words",
        "description",
        "Say two.",
        3,
    )
    assert client.get("/v1/adapters").json()["data"] == [body]
    assert client.get("/v1/adapters/two%20words").json() == body
    assert answer(client, "two words") == answer(client, "t2l:Say two")
    error(client.post("/v1/adapters", json={"name": "two words", "description": "x"}), 400, "name")
    assert client.delete("/v1/adapters/two words").json()["deleted"]
    error(client.delete("/v1/adapters/two words"), 404, "name", "model_not_found")
    error(client.post("/v1/chat/completions", json=CHAT | {"model": "two words"}), 404, "model", "model_not_found")


def test_mixtures(client):
    client.post("/v1/adapters", json={"name": "two", "description": "Say two."})
    half = [{"name": "two", "weight": 0.5}, {"name": "t2l:Say two.", "weight": 0.5}]
    made = client.post("/v1/adapters", json={"name": "same", "mix": half})
    assert (made.status_code, made.json()["origin"]) == (201, "mix")
    assert answer(client, "same") == answer(client, "two")
    none = client.post("/v1/adapters", json={"name": "none", "mix": [{"name": "two", "weight": 0}]})
    assert none.status_code == 201
    assert answer(client, "none") == answer(client, BASE)
    error(
        client.post("/v1/adapters", json={"name": "x", "mix": [{"name": "y", "weight": 1}]}),
        404,
        "mix",
        "model_not_found",
    )
    error(client.post("/v1/adapters", json={"name": "x"}), 400, "description")
    error(client.post("/v1/adapters", json={"name": "x", "description": "y", "mix": half}), 400, "description")
    error(client.post("/v1/adapters", json={"name": "../x", "description": "y"}), 400, "name")


def test_a_mixture_without_a_name_is_kept_while_there_is_room(serve):
    client = serve(most=3)
    body = {"mix": [{"name": "t2l:Say two.", "weight": 0.25}, {"name": "t2l:Say three.", "weight": 0.75}]}
    made = client.post("/v1/adapters", json=body)
    name = made.json()["id"]
    assert (made.status_code, made.json()["origin"], name.startswith("mix:")) == (201, "mix", True)
    assert client.get("/v1/adapters").json()["data"] == []
    client.post("/v1/adapters", json=body | {"name": "same"})
    assert answer(client, name) == answer(client, "same")
    assert client.get(f"/v1/adapters/{name}/norms").json() == client.get("/v1/adapters/same/norms").json()
    error(client.post("/v1/adapters", json=body | {"name": name}), 400, "name")
    for text in ("Say four.", "Say five.", "Say six.", "Say seven."):
        answer(client, f"t2l:{text}")
    error(client.get(f"/v1/adapters/{name}"), 404, "name", "model_not_found")
    error(client.post("/v1/chat/completions", json=CHAT | {"model": name}), 404, "model", "model_not_found")
    assert client.get("/v1/adapters/same").status_code == 200


def test_any_description_can_be_in_a_path(client):
    for text in ("Say one\ntwo | three <b>.", "a/b\r\n/norms", "?#/../x"):
        made = client.post("/v1/adapters", json={"description": text})
        assert made.status_code == 201
        path = f"/v1/adapters/{quote(made.json()['id'], safe='')}"
        for part in ("", "/norms", "/nearest", "/peft.zip", "/adapter.gguf"):
            assert client.get(path + part).status_code == 200, (text, part)


def test_norms_of_a_huge_upload_are_numbers(client, model, tmp_path):
    save_peft(jax.tree.map(lambda leaf: leaf * 0 + 1e15, model.generate(["x"])[0]), tmp_path / "huge", base_model=BASE)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in (tmp_path / "huge").iterdir():
            archive.write(path, path.name)
    assert client.put("/v1/adapters/huge/peft.zip", content=buffer.getvalue()).status_code == 201
    assert client.get("/v1/adapters/huge/norms").json()["norms"]["q_proj"][0] > 1e30


def test_without_a_name_a_description_is_the_name(client):
    made = client.post("/v1/adapters", json={"description": "Say two"})
    assert (made.status_code, made.json()["id"]) == (201, "t2l:Say two.")
    assert made.json()["seconds"] > 0
    assert client.get("/v1/adapters").json()["data"] == []
    assert client.get("/v1/adapters/t2l:Say two").json() == made.json()


def test_downloads_and_uploads(client, model, llm, tmp_path):
    client.post("/v1/adapters", json={"name": "zwei ü", "description": "Say two."})
    got = client.get("/v1/adapters/zwei ü/peft.zip")
    assert got.headers["content-disposition"] == "attachment; filename*=UTF-8''zwei%20%C3%BC.zip"
    zipfile.ZipFile(io.BytesIO(got.content)).extractall(tmp_path)
    assert load_peft(tmp_path, llm.config).spec.rank == 3
    assert client.put("/v1/adapters/again/peft.zip", content=got.content).json()["origin"] == "upload"
    assert answer(client, "again") == answer(client, "t2l:Say two.")
    gguf = client.get("/v1/adapters/zwei ü/adapter.gguf")
    assert gguf.headers["content-disposition"] == "attachment; filename*=UTF-8''zwei%20%C3%BC.gguf"
    (tmp_path / "adapter.gguf").write_bytes(gguf.content)
    theirs, ours = load_gguf_adapter(tmp_path / "adapter.gguf", llm.config), load_peft(tmp_path, llm.config)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), dense_delta(theirs), dense_delta(ours))
    mixed = client.post("/v1/adapters", json={"name": "mixed", "mix": [{"name": "again", "weight": 1}]})
    assert "again was not generated here" in error(mixed, 400, "mix")
    message = error(client.put("/v1/adapters/other/peft.zip", content=got.content[:-40]), 400)
    assert "no zip file, or damaged" in message
    error(client.put("/v1/adapters/again/peft.zip", content=got.content), 400, "name")
    error(client.put("/v1/adapters/big/peft.zip", content=bytes(2**21 + 8 * 400)), 413, None, "too_large")
    answer(client, "t2l:Say three.")
    assert client.get("/v1/adapters/t2l:Say three./peft.zip").status_code == 200
    error(client.get("/v1/adapters/t2l:Say four./peft.zip"), 404, "name", "model_not_found")


def test_adapters_are_loaded_from_the_opened_folder_only(serve, tmp_path):
    adapter = jax.tree.map(lambda leaf: leaf + 0.3, init_adapter(jax.random.key(0), SPEC))
    save_peft(adapter, tmp_path / "opened" / "one", base_model=BASE)
    save_peft(adapter, tmp_path / "outside", base_model=BASE)
    client = serve(folder=tmp_path / "opened")

    def load(path, name="one", **more):
        return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": path} | more)

    loaded = load("one")
    assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'one' added successfully.")
    assert loaded.headers["content-type"].startswith("text/plain")
    assert load(str(tmp_path / "opened" / "one"), "absolute").status_code == 200
    assert answer(client, "one") == answer(client, "absolute") != answer(client, BASE)
    error(load("one"), 400, "lora_name")
    assert load("one", load_inplace=True).status_code == 200
    for path in ("../outside", str(tmp_path / "outside"), "nothing", "x" * 4000, "a\0"):
        error(load(path, "x"), 400, "lora_path")
    unloaded = client.post("/v1/unload_lora_adapter", json={"lora_name": "one"})
    assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'one' removed successfully.")
    error(client.post("/v1/unload_lora_adapter", json={"lora_name": "one"}), 404, "lora_name", "model_not_found")
    closed = serve()
    message = error(closed.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "one"}), 400, "lora_path")
    assert "--adapters FOLDER" in message


def test_names_with_a_slash_are_reachable(client):
    name = "t2l:Answer yes/no."
    answer(client, name)
    assert client.get(f"/v1/adapters/{name}").json()["id"] == name
    assert client.get(f"/v1/adapters/{name}/peft.zip").status_code == 200
    assert client.delete(f"/v1/adapters/{name}").json()["deleted"]
