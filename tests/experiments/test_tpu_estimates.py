"""The programs that estimate and time steps: the sum of libtpu's cycles, the table of topologies, the mappers."""

from experiments.benchmark import cycles, mappers, topologies

PROGRAM = """HloModule jit_loss

%search_condition.1 (arg.1: (s32[], f32[8])) -> pred[] {
  ROOT %or.1 = pred[] fusion(%arg.1), kind=kLoop, calls=%any, backend_config={"estimated_cycles":"3"}
}

%search_body.1 (arg.2: (s32[], f32[8])) -> (s32[], f32[8]) {
  ROOT %pass.1 = f32[8] fusion(%arg.2), kind=kLoop, calls=%count, backend_config={"estimated_cycles":"40"}
}

%block_condition.2 (arg.3: (s32[])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(4)
  ROOT %lt.1 = pred[]{:T(512)} compare(%arg.3, %constant.1), direction=LT
}

%block_body.2 (arg.4: (s32[])) -> (s32[]) {
  %product.1 = f32[8] fusion(%arg.4), kind=kOutput, calls=%dot, backend_config={"estimated_cycles":"1000"}
  ROOT %search.1 = (s32[], f32[8]) while(%product.1), condition=%search_condition.1, body=%search_body.1
}

%ties.1 (arg.5: f32[8]) -> f32[8] {
  ROOT %sort.1 = f32[8] fusion(%arg.5), kind=kLoop, calls=%sort, backend_config={"estimated_cycles":"90000"}
}

%no_ties.1 (arg.6: f32[8]) -> f32[8] {
  ROOT %copy.1 = f32[8] fusion(%arg.6), kind=kLoop, calls=%copy, backend_config={"estimated_cycles":"7"}
}

ENTRY %main.1 (queue.1: f32[8]) -> f32[8] {
  %blocks.1 = (s32[]) while(%queue.1), condition=%block_condition.2, body=%block_body.2
  ROOT %cond.1 = f32[8] conditional(%blocks.1, %x, %x), branch_computations={%ties.1, %no_ties.1}
}
"""


def test_cycles_of_loops() -> None:
    """A loop of known length counts as often as it runs, one of unknown length is apart, and ties are rare."""
    assert cycles.count(PROGRAM) == cycles.Cycles(known=4 * 1000 + 7, search=4 * 43)


def test_table_of_topologies() -> None:
    report = {
        'bytes_per_device': 14_700_000_000,
        'memory_bytes': 16_900_000_000,
        'bytes_by_part': {},
        'compute_seconds': 0.1089,
        'memory_seconds': None,
        'roofline_head_seconds': 0.0005,
        'queue_reads': 8,
        'collectives': {'all-reduce': {'count': 3, 'bytes': 2_500_000}},
    }
    head, _, *rows = topologies.table([{'topology': 'v5e:4x4', 'report': report}]).splitlines()
    assert head == '| ResNet-50, batch 4,096 | v5e:4x4 |'
    values = [row.split(' | ')[1].rstrip(' |') for row in rows]
    assert values[:6] == ['14.70 of 16.90 GB', 'unknown GB', '109 ms', 'unknown', '0.5 ms', '8']
    assert values[6:] == ['3 ×, 2.5 MB', '0 ×, 0.0 MB', '0 ×, 0.0 MB']


def test_mappers() -> None:
    cases = mappers.measure(mappers.NAMES, leaves=3, rounds=2)
    assert [case['mapper'] for case in cases] == ['pmap', 'shard_map']
    assert all(0 < case['smallest_ms'] <= case['ms'] for case in cases)
