"""Samplers by name: diffusers' schedulers, set up for an objective."""

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from stedm.diffusion.objective import BETAS, TRAIN_TIMESTEPS
from stedm.errors import StedmError

_MULTISTEP = {"dpm++": DPMSolverMultistepScheduler, "unipc": UniPCMultistepScheduler}


def make_sampler(name: str, objective: str, steps: int) -> SchedulerMixin:
    """A scheduler with exactly `steps` timesteps set.

    Args:
        name: `ddim`, `dpm++`, `unipc` or `euler`.
        objective: `eps`, `v` or `flow`.

    Raises:
        StedmError: the sampler doesn't go with the objective, or is unknown.
    """
    if objective == "flow":
        if name == "euler":
            scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=TRAIN_TIMESTEPS)
        elif name in _MULTISTEP:
            scheduler = _MULTISTEP[name](
                num_train_timesteps=TRAIN_TIMESTEPS, prediction_type="flow_prediction", use_flow_sigmas=True
            )
        else:
            raise StedmError(f"sampler {name}: a flow model is sampled with dpm++, unipc or euler")
    else:
        prediction = {"eps": "epsilon", "v": "v_prediction"}[objective]
        if name == "ddim":
            # Trailing spacing starts at the last timestep, as in Lin et al. 2024, and gives exactly `steps` steps.
            scheduler = DDIMScheduler(
                **BETAS, prediction_type=prediction, clip_sample=False, timestep_spacing="trailing"
            )
        elif name in _MULTISTEP:
            scheduler = _MULTISTEP[name](**BETAS, prediction_type=prediction, timestep_spacing="trailing")
        else:
            raise StedmError(f"sampler {name}: a model of objective {objective} is sampled with ddim, dpm++ or unipc")
    scheduler.set_timesteps(steps)
    return scheduler
