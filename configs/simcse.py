"""Tunes a pretrained sentence encoder on plain text: one sentence a line, or a column of a table.

    python -m dualcl_jax.main --config=configs/simcse.py --init_from=MODEL --config.data.path=FILE --workdir=runs/simcse

MODEL is a folder in Hugging Face's format with BERT's architecture (config.json, model.safetensors, tokenizer.json).
Recipes, after the colon of --config=configs/simcse.py:RECIPE: simcse (the default), esimcse, mocose, contriever, crop
(of passages), pair (of queries and passages), and dualcl_simcse and so on, with both views as query and key and the
hardest quarter of the negatives. The encoder has the sizes of MODEL. `docs/text.md` has the time and the accuracy of
crop and dualcl_pair, and what differs from the published methods. Accuracies of the others: unmeasured.
"""

from ml_collections import ConfigDict

from dualcl_jax.configs import default
from dualcl_jax.configs.shared import text_recipes


def get_config(recipe: str = 'simcse') -> ConfigDict:
    config = default.get_config()
    config.data.name = 'text'
    config.model.width = config.model.dim = 384
    config.log.every_steps = 10
    return text_recipes.apply(config, recipe)
