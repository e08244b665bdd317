"""Co-teaching for multi-label images: two networks, each trained on the images that the other one finds clean."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_balancemix import checks
from hf_balancemix.argument_checks import check_plain_mixup
from hf_balancemix.data.pairs import ImageRows, PairDataset
from hf_balancemix.data.two_networks import TwoNetworkDataset, TwoNetworkSampler, epoch_orders
from hf_balancemix.losses import label_losses, pair_losses
from hf_balancemix.method import exchange, instance_posteriors, mix, step_weights
from hf_balancemix.training.arguments import BalanceMixTrainingArguments
from hf_balancemix.training.checkpoints import save_final_state
from hf_balancemix.training.diagnostics import selection_diagnostics
from hf_balancemix.training.multilabel import MultiLabelTrainer
from hf_balancemix.training.network_pair import NetworkPair, second_seed, with_new_head
from hf_balancemix.training.refresh import broadcast_statistics, predict_views

logger = logging.get_logger(__name__)


class CoTeachingTrainer(MultiLabelTrainer):
    """Trains two networks at once; takes what :class:`MultiLabelTrainer` takes, and a second model.

    Until ``warmup_epochs`` both networks learn from all images, each in an order of its own. From then on each
    network's image losses are divided once per epoch by a mixture of two Gaussians, and each network learns from the
    images that the other one selected: its loss is the mean over those of an optimiser step. With
    ``second_sampler="batch"`` images are mixed with one another as in plain Mixup, among those that are learned from;
    with "none" they are not mixed. The samplers of pairs, among them the default, are refused: one must be said.

    ``model`` becomes a :class:`NetworkPair`: saved, it is the first network, with the second beside it. Evaluation and
    prediction take the first, or with ``evaluated_network="mean"`` the mean of both probabilities.

    Relations: the original Co-teaching (Han et al. 2018) selects within each batch, by a schedule that knows the noise
    rate; here, as in the comparison of BalanceMix, the mixture takes its place. An image is taken or left with all its
    labels: where nearly every image holds some wrong label, as under random flipping, there is little to select.
    ``BalanceMixTrainer`` decides label by label.

    Args:
        model: The first network.
        args: :class:`BalanceMixTrainingArguments`.
        second_model: The second one; unless given, a copy of the first whose classification head is drawn anew.
        **kwargs: See :class:`MultiLabelTrainer`. With ``model_init`` the second network is such a copy.

    Raises:
        TypeError: As :class:`MultiLabelTrainer`, and for a ``second_model`` with ``model_init``.
        ValueError: As :class:`MultiLabelTrainer`, for networks that do not fit together, with FSDP or DeepSpeed, and
            from ``train`` for samplers of pairs.
    """

    networks = 2
    keeps_tables = True
    _weights: torch.Tensor | None = None

    def __init__(
        self,
        model: Any = None,
        args: BalanceMixTrainingArguments | None = None,
        *,
        second_model: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> None:
        args = args if args is not None else BalanceMixTrainingArguments(output_dir="trainer_output")
        checks.check_trainer_inputs(args, model, kwargs.get("processing_class"), kwargs)
        if model is not None:
            model = _pair(model, second_model, args)
            _check_optimizer(model, kwargs.get("optimizers"))
        elif second_model is not None:
            raise TypeError(
                "Expected a `model` with a `second_model`, found none. Pass both, or `model_init` alone: the second "
                "network is then a copy with another head."
            )
        super().__init__(model, args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "Expected co-teaching without FSDP and DeepSpeed, found one of them: both networks are saved as "
                "checkpoints of their own. Train with plain data parallelism."
            )

    @classmethod
    def check_arguments(cls, args: BalanceMixTrainingArguments) -> None:
        """Refuse samplers of pairs."""
        check_plain_mixup(args, cls.__name__)

    def call_model_init(self, trial: Any = None) -> NetworkPair:
        """Return a new pair, for each run of a hyperparameter search."""
        return self._order_channels(_pair(super().call_model_init(trial), None, self.args))

    def _load_weights(self, checkpoint: str | None) -> bool:
        if checkpoint is None:
            return super()._load_weights(checkpoint)
        self.model.load_weights(checkpoint)
        return True

    # ---- before each epoch ----

    def prepare_epoch(self, epoch: int, final: bool = False) -> None:
        """Divide the training images by both networks' losses, once; weigh those of ``epoch`` within their steps.

        Args:
            epoch: Zero-based number of the epoch that is about to begin; the number of epochs when training is over.
            final: Whether training is over.
        """
        state, args = self.label_state, self.args
        self._weights = None
        if epoch == 0 and not final and args.warmup_epochs >= self.state.num_train_epochs:
            logger.warning(
                f"Both networks will learn from all images: `warmup_epochs` is {args.warmup_epochs}, the run has "
                f"{self.state.num_train_epochs} epochs. A fifth to a quarter of the epochs is a fair start."
            )
        if state is None or not (epoch >= args.warmup_epochs or final):
            return
        if state.prepared_epoch != epoch:
            self._select(epoch)
            if final and args.should_save and not self.state.is_hyper_param_search:
                save_final_state(state, args.output_dir, self.run_facts())
        if final:
            return
        orders, _ = epoch_orders(len(state), args.seed, epoch)
        step_size, used = self.images_per_step(), self._used_rows()
        trained = self._trained_rows()
        self._weights = torch.stack(
            [step_weights(order[:used], rows, step_size) for order, rows in zip(orders, trained, strict=True)]
        )

    def _select(self, epoch: int) -> None:
        """Bring the statistics of ``label_state`` up to date with both networks as they are now."""
        state, args = self.label_state, self.args
        start = time.perf_counter()
        logits = predict_views(self, clean=True, augmented=0, epoch=epoch, predict=self._both_logits)[:, 0]
        if self.is_world_process_zero():
            losses = torch.stack([label_losses(part, state.labels).sum(dim=1) for part in logits.unbind(dim=1)], dim=1)
            posteriors = instance_posteriors(losses, min_fit=args.min_fit, monotone=args.monotone_posterior)
            state.instance_posterior = posteriors.float()
            probs = logits.sigmoid()
            state.probs = probs.mean(dim=1) if args.evaluated_network == "mean" else probs[:, 0]
        broadcast_statistics(state, args)
        state.prepared_epoch = epoch
        seconds = time.perf_counter() - start
        measured = selection_diagnostics(state, self.clean_labels)
        self.log(measured | {"refresh_seconds": round(seconds, 3)})

    def _both_logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return (n, 2, K) logits of both networks on the same images."""
        outputs = self.model(pixel_values=pixels, second_pixel_values=pixels)
        return torch.stack([outputs["logits"], outputs["second_logits"]], dim=1)

    # ---- which images, in which order ----

    def _trained_rows(self) -> torch.Tensor:
        """Return the (2, N) rows that each network learns from in the present epoch."""
        state = self.label_state
        if self._epoch() < self.args.warmup_epochs or state.instance_posterior is None:
            return torch.ones(2, len(state), dtype=torch.bool)
        return exchange(state.instance_posterior)

    def _used_rows(self) -> int:
        """Return how many rows an epoch takes: a batch that not every process gets is dropped, if any is."""
        rows, batch = self.training_rows(), self._train_batch_size * self.args.world_size
        return rows // batch * batch if self.args.dataloader_drop_last else rows

    def _train_sampler(self, dataset: Any) -> TwoNetworkSampler:
        return TwoNetworkSampler(
            len(dataset),
            self.args.seed,
            self._epoch,
            self._trained_rows,
            self.images_per_step(),
            self._used_rows(),
            mixed=self._mixes(),
        )

    def _pair_dataset(self, images: ImageRows) -> PairDataset:
        return TwoNetworkDataset(images, self.transform, self.args.mix_alpha, folded=False)

    # ---- one step ----

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the sum of both networks' losses, each on the images that it learns from."""
        if "index" not in inputs:
            return super().compute_loss(model, inputs, return_outputs)
        batches = [self._network_batch(inputs, network) for network in (0, 1)]
        outputs = model(pixel_values=batches[0]["pixels"], second_pixel_values=batches[1]["pixels"])
        losses = []
        for batch, logits in zip(batches, (outputs["logits"], outputs["second_logits"]), strict=True):
            labels, index = batch["labels"], batch["index"]
            if index.shape[1] == 1:
                entries = self._entry_losses(logits, labels[:, 0])
            else:
                entries = pair_losses(self._entry_losses, logits, labels[:, 0], labels[:, 1], batch["mix_lambda"])
            share = len(index) / len(inputs["index"])  # the mean is over the whole batch
            losses.append(share * self._training_loss(entries * batch["weights"][:, None], index))
        return losses[0] + losses[1]

    def _network_batch(self, inputs: dict[str, Any], network: int) -> dict[str, torch.Tensor]:
        """Return mixed images, labels, rows, λ and weights of what one network learns from in this batch."""
        members = inputs["index"].shape[1] // 2
        own = slice(network * members, (network + 1) * members)
        index, pixels = inputs["index"][:, own], inputs["pixel_values"][:, own, 0]
        mix_lambda = self._mix_lambda({"mix_lambda": inputs["mix_lambda"][:, network]})
        weights = torch.ones(len(index)) if self._weights is None else self._weights[network][index[:, 0].cpu()]
        # Images that are not learned from stay out of batch norm. It needs two, and DDP a gradient: if fewer are left,
        # others fill up with weight 0.
        wanted = max(int((weights > 0).sum()), min(2, len(weights)))
        kept = (weights > 0).int().argsort(descending=True, stable=True)[:wanted].to(pixels.device)
        index, pixels, mix_lambda = index[kept], pixels[kept], mix_lambda[kept]
        return {
            "pixels": pixels[:, 0] if members == 1 else mix(pixels[:, 0], pixels[:, 1], mix_lambda),
            "labels": self._given_labels(index).to(pixels.device),
            "index": index,
            "mix_lambda": mix_lambda,
            "weights": weights.to(pixels.device)[kept],
        }


def _pair(model: Any, second: Any, args: BalanceMixTrainingArguments) -> NetworkPair:
    if second is None and isinstance(model, PreTrainedModel):
        second = with_new_head(model, second_seed(args.seed))
    return NetworkPair(model, second, args.evaluated_network)


def _check_optimizer(pair: NetworkPair, optimizers: Any) -> None:
    """Refuse an optimiser made by hand that would leave the second network as it is."""
    if not optimizers or optimizers[0] is None:
        return
    held = {id(parameter) for group in optimizers[0].param_groups for parameter in group["params"]}
    if held.isdisjoint(map(id, pair.second.parameters())):
        raise ValueError(
            "Expected an optimiser of both networks as `optimizers`, found one without the second's parameters. Leave "
            "it out (`optim` and `optim_args` choose one), or pass a `second_model` and its parameters to it too."
        )
