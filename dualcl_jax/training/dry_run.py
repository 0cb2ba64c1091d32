"""A dry run: checks everything, traces the step and prints the plan; compiles, trains and writes nothing."""

from functools import partial

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from dualcl_jax.method.state import state_specs
from dualcl_jax.method.validation import validate
from dualcl_jax.step import train_step
from dualcl_jax.system.console import Console
from dualcl_jax.system.devices import ShardMapMapper, bytes_per_device, shapes
from dualcl_jax.training.plan import make_plan
from dualcl_jax.training.summary import header


def dry_run(config: ConfigDict, workdir: str, *, extend: bool = False) -> None:
    """Prints what `train` would do with a config, a workdir and `--extend`.

    Raises:
      UserError: any mistake for which `train` would fail before its first step.
    """
    validate(config)
    plan = make_plan(config, workdir, writes=False, extend=extend)
    state = jax.eval_shape(plan.create)
    specs = state_specs(plan.method)
    jax.eval_shape(ShardMapMapper(plan.mesh, specs).map(partial(train_step, plan.method)), state, plan.batch())
    size = bytes_per_device(shapes(state, plan.mesh, specs))
    steps = [0, plan.total_steps // 2, plan.total_steps - 1]
    rates = (f'{float(plan.method.learning_rate(jnp.int32(step))):.3g} at step {step:,}' for step in steps)
    console = Console(silent=jax.process_index() != 0)
    facts = header(plan, state.params) | {
        'state': f'{size / 1e6:,.1f} MB on every device',
        'learning rate': ', '.join(rates),
    }
    console.facts(facts)
    console.note('dry run: everything is valid; nothing was trained or written')
