"""What packages call the tensors that they put beside a layer's weight, and what to do about each.

Any tensor beside a weight and a bias makes the layer more than those two; these tables only tell
what it is, so that the error can say how to get a plain layer. The names were read from checkpoints
that the packages wrote; docs/behaviours.md lists them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Family(NamedTuple):
    """A kind of tensor beside a weight: how it is called, by which names, and what helps."""

    word: str
    names: re.Pattern[str]
    remedy: str


def _names(text: str) -> re.Pattern[str]:
    """A pattern of whole words between dots, colons, underscores and digits."""
    return re.compile(rf"(?:^|[._:])(?:{text})(?=[._:\d]|$)", re.IGNORECASE | re.VERBOSE)


ADAPTER: Final = _names(r"""
    \w*lora | dora | lycoris | loha | hada | lokr | locon | \w*oft_(?:R|s|r|blocks) | ia3 | ia3_l
    | p?vera_\w+ | fourierft_\w+ | waveft_\w+ | hra_u | c3a_kernel | road_(?:theta|alpha)
    | (?:miss|bone)_block | shira_\w+ | osf_svd_params | psoft_R | lily_\w+ | adamss_\w+ | beft_bias
    | deft_[PR] | frod_\w+ | hira_[AB] | peanut_[AB] | poly_(?:router|lora) | supertuning_\w+
    | \w*adapters? | base_layer | modules_to_save | original_module | ln_tuning_layers
    | trainable_tokens_\w+ | prefix_tunings? | loras | w_[ab]s?
""")
PACKED: Final = _names(r"""
    _?(?:weight_)?(?:q|packed_)data | _data | _scale | _shift | W_q | meta | SCB | CB | quant_state
    | (?:nested_)?absmax | (?:nested_)?quant_map | weight_format | qweight | qzeros | g_idx
    | (?:in|out)put_scale | (?:weight_)?scales? | weight_scales? | weight_scale_inv
    | _?(?:weight_)?zero_points? | zeros? | _packed_params | weight_packed | weight_shape
    | codes | codebooks | centroids | indices | q_weight | q_scale\w* | q_group\w* | q_invperm
    | q_perm | trellis | suh | svh | Qidxs\w* | qdata | tscales | weight_fake_quant | weight_quant
    | activation_post_process | __nncf\w* | (?-i:B|s) | lut | lookup_table | sparse_\w+ | blocks
""")
_FOLD: Final = (
    "fold it first: torch.nn.utils.parametrize.remove_parametrizations (or remove_weight_norm, "
    "prune.remove), then save again"
)
_FAMILIES: Final = (
    Family(
        "adapted",
        ADAPTER,
        "merge the adapter first (PEFT: model = model.merge_and_unload(); loralib: model.eval(); "
        "LyCORIS: merge_to), and save the state_dict of what comes of it",
    ),
    Family(
        "weight-normed",
        _names(r"weight_g | weight_v | parametrizations\.weight\.original[01]"),
        _FOLD,
    ),
    Family("parametrised", _names(r"parametrizations"), _FOLD),
    Family(
        "pruned or spectrally normed",
        _names(r"(?:weight|bias)_(?:orig|mask|u) | \w*mask"),
        _FOLD,
    ),
    Family("quantised", PACKED, "use the checkpoint from before it was quantised"),
)
MORE: Final = "more than a weight and a bias"
_MORE: Final = Family(
    MORE,
    re.compile(""),
    "give the model too (--model KIND:NAME; in Python load_model), so that it can be run and its "
    "logits compared; or save a state_dict in which the layer is a weight and a bias alone",
)


def family_of(key: str) -> str:
    """What a tensor beside a weight makes of the layer."""
    return next((f for f in _FAMILIES if f.names.search(key)), _MORE).word


def remedy_for(problem: str) -> str | None:
    """What to do about a layer whose problem begins with a family's word."""
    found = (f.remedy for f in (*_FAMILIES, _MORE) if problem.startswith(f.word))
    return next(found, None)


# What does no harm

ELSEWHERE: Final = re.compile(
    r"(?:^|[._])(?:optim\w*|scheduler\w*|lr_sched\w*|scaler|grad\w*|momentum\w*|callbacks|loops"
    r"|rng\w*)(?:[._]|$)",
    re.IGNORECASE,
)
_HARMLESS: Final = re.compile(
    r"""
    (?:^|[._])(?:criterion\w*|loss(?:es)?|loss_\w+|\w+_loss)\.          # buffers of losses
    | (?:^|\.)(?:pos|class|label|loss|sample)_weights?$
    | (?:^|[._])(?:\w+_)?(?:metrics?|auroc|confmat|accuracy)\.          # and of metrics
    # counters, and the digests of the rows that fitted a head of catwise
    | (?:^|\.)(?:num_batches_tracked|total_ops|total_params|epochs?|(?:global_)?steps?
        |iterations?|n_averaged|num_updates|decay|best_\w+|seed|version|fitted_on)$
    | (?:^|\.)position_ids$
    | (?:^|\.)(?:AuxLogits|aux_logits|aux[12]|aux_classifier)\.         # classifiers for training
    """,
    re.VERBOSE,
)
_INPUTS: Final = re.compile(r"(?:^|[._])(?:mean|std)$")


def harmless(container: str, key: str, shape: tuple[int, ...], n_categories: int) -> bool:
    """Whether a tensor is of a kind that no logit depends on, or only the images' scaling.

    Optimizer and scheduler state, buffers of losses and metrics, counters, a moving average's
    bookkeeping, auxiliary classifiers that train only, mean and standard deviation of the input.
    """
    if ELSEWHERE.search(container) or _HARMLESS.search(key):
        return True
    sizes = {size for size in shape if size != 1}
    return bool(_INPUTS.search(key)) and (len(shape) > 2 or (sizes <= {3} and n_categories != 3))
