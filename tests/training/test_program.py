"""What is read from compiled programs, against counts by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from t2l_jax.sharding import make_mesh
from t2l_jax.training.program import KINDS, Program

# As the TPU's compiler writes it: one gather in two parts on one channel, a loop whose count only its condition has,
# groups by axes of the mesh, and an operation that it cannot estimate.
TPU = """HloModule jit_step, is_scheduled=true

%start (param: bf16[1,1024,8]) -> (bf16[1,1024,8], bf16[1,4096,8]) {
  %param = bf16[1,1024,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %all-gather.1 = bf16[1,4096,8]{2,1,0:T(8,128)(2,1)} all-gather(%param), channel_id=5, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_1'}, dimensions={1}
  ROOT %call = (bf16[1,1024,8]{2,1,0}, bf16[1,4096,8]{2,1,0:T(8,128)(2,1)S(1)}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%rest (param: bf16[1,1024,8]) -> bf16[1,4096,8] {
  %param = bf16[1,1024,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.2 = bf16[1,4096,8]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param), channel_id=5, replica_groups=mesh['axis_0'=1,'axis_1'=4,'axis_2'=4], device_ids=([4,4]T(1,0)) {'axis_1'}, dimensions={1}
}

%body (arg: (s32[], bf16[1,1024,8])) -> (s32[], bf16[1,1024,8]) {
  %arg = (s32[]{:T(128)}, bf16[1,1024,8]{2,1,0}) parameter(0)
  %fusion.1 = (bf16[1,1024,8]{2,1,0}, bf16[1,4096,8]{2,1,0}) fusion(%arg), kind=kLoop, calls=%start, metadata={op_name="jit(step)/up"}, backend_config={"estimated_cycles":"100"}
  %fusion.2 = bf16[1,4096,8]{2,1,0} fusion(%fusion.1), kind=kOutput, calls=%rest, metadata={op_name="jit(step)/down"}, backend_config={"estimated_cycles":"7"}
  ROOT %tuple = (s32[]{:T(128)}, bf16[1,1024,8]{2,1,0}) tuple(%arg, %fusion.2)
}

%condition (arg: (s32[], bf16[1,1024,8])) -> pred[] {
  %arg = (s32[]{:T(128)}, bf16[1,1024,8]{2,1,0}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %constant = s32[]{:T(128)} constant(32)
  ROOT %compare = pred[]{:T(512)} compare(%counter, %constant), direction=LT
}

%unknown (arg: (s32[], s32[])) -> pred[] {
  %arg = (s32[], s32[]) parameter(0)
  %counter = s32[] get-tuple-element(%arg), index=0
  %limit = s32[] get-tuple-element(%arg), index=1
  ROOT %compare = pred[] compare(%counter, %limit), direction=LT
}

%chunk (arg: (s32[], s32[])) -> (s32[], s32[]) {
  %arg = (s32[], s32[]) parameter(0)
  ROOT %copy = (s32[], s32[]) copy(%arg), backend_config={"estimated_cycles":"50"}
}

ENTRY %main (param: bf16[1,1024,8]) -> bf16[8] {
  %param = bf16[1,1024,8]{2,1,0} parameter(0)
  %while.1 = (s32[]{:T(128)}, bf16[1,1024,8]{2,1,0}) while(%param), condition=%condition, body=%body
  %while.2 = (s32[], s32[]) while(%while.1), condition=%unknown, body=%chunk
  %all-reduce.3 = (f32[8,4]{1,0:T(8,128)S(1)}, /*index=1*/f32[2]{0}) all-reduce(%while.2), channel_id=9, replica_groups=[1,16]<=[16], to_apply=%add
  %alone = f32[8]{0} all-reduce(%while.2), channel_id=10, replica_groups={{0},{1}}, to_apply=%add
  %start = (bf16[8]{0}, bf16[8]{0}, u32[], u32[]) collective-permute-start(%param), channel_id=11, source_target_pairs={{0,1},{1,0}}
  %done = bf16[8]{0} collective-permute-done(%start)
  %gathered = (bf16[8]{0}, bf16[32]{0}) all-gather-start(%param), channel_id=12, replica_groups=[4,4]<=[16], dimensions={0}
  %sum = f32[4]{0} reduce-scatter(%param), channel_id=13, replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
  %odd = bf16[8]{0} copy(%done), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %out = bf16[8]{0} copy(%odd), metadata={op_name="jit(step)/add"}, backend_config={"estimated_cycles":"3"}
}
"""  # noqa: E501


def test_the_text_of_a_tpus_program():
    program = Program.parse(TPU, 16)
    found = [(own.kind, own.group, own.size, own.times) for own in program.collectives()]
    assert found == [
        ("all-gather", 4, 4096 * 8 * 2 * 3 // 4, 32),
        ("all-reduce", 16, 2 * (32 + 2) * 4 * 15 // 16, 1),
        ("collective-permute", 16, 16, 1),
        ("all-gather", 4, 48, 1),
        ("reduce-scatter", 2, 16, 1),
    ]
    assert list(program.cycles()) == [("jit(step)/up", 3200), ("jit(step)/down", 224), ("", 50), ("jit(step)/add", 3)]


LAYERS, WIDTH = 5, 16


def everything(x: jax.Array) -> jax.Array:
    """One operation of each kind in each of LAYERS turns, and a sum over half the devices at the end."""

    def layer(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # [4 n, WIDTH]
        x = jax.lax.psum_scatter(jnp.sin(whole), "fsdp", tiled=True)
        x = jax.lax.ppermute(jnp.cos(x), "fsdp", [(n, (n + 1) % 4) for n in range(4)])
        x = jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True).reshape(x.shape)
        return jnp.sin(jax.lax.psum(x, ("data", "fsdp"))), None

    return jax.lax.psum(jax.lax.scan(layer, x, None, LAYERS)[0], "data")


def test_every_kind_in_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(fsdp=4)  # data 2
    step = jax.shard_map(everything, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"), check_vma=False)
    x = jax.ShapeDtypeStruct((32, WIDTH), jnp.float32)
    found = Program.parse(jax.jit(step).lower(x).compile().as_text(), mesh.size).collectives()
    mine = 8 * WIDTH * 4  # bytes of a device's part
    totals = {kind: sum(own.size * own.times for own in found if own.kind == kind) for kind in KINDS}
    assert totals == {
        "all-gather": LAYERS * 3 * mine,
        "reduce-scatter": LAYERS * 3 * mine,
        "collective-permute": LAYERS * mine,
        "all-to-all": LAYERS * 3 * mine // 4,
        "all-reduce": LAYERS * 2 * mine * 7 // 8 + 2 * mine // 2,
    }
    assert {own.times for own in found} == {1, LAYERS}


@pytest.mark.parametrize("devices", [1, 8])
def test_a_program_that_sends_nothing(devices):
    program = jax.jit(partial(jnp.matmul)).lower(*[jax.ShapeDtypeStruct((8, 8), jnp.float32)] * 2).compile()
    assert Program.parse(program.as_text(), devices).collectives() == []
