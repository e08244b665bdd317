"""Multi-label heads: from the features of any backbone to one logit per class.

Every head takes a map (B, C, H, W) or tokens (B, N, C) and returns (B, K) logits. Read beside the papers of ML-Decoder
(Ridnik et al. 2023), Query2Label (Liu et al. 2021) and C-Tran (Lanchantin et al. 2021).
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .layers import ClasswiseLinear, TransformerLayer, as_tokens, sine_positions, uniform_by_fan_in

MAX_QUERIES = 100


class Head(nn.Module):
    """What all heads are.

    Attributes:
        patches_only: Whether class and register tokens are to be left out.
        frozen: Parameters that keep their values, by name.
    """

    patches_only = False
    frozen: tuple[str, ...] = ()


def build_head(name: str, feature_dim: int, num_labels: int, **options: Any) -> Head:
    """Build a head by its name.

    Args:
        name: One of ``HEADS``. ``query2label`` has the published size (151 M parameters for 80 classes on 2048
            channels), ``query2label_small`` is 768 wide (18 M).
        feature_dim: C, channels of the features.
        num_labels: K.
        **options: Arguments of the head's class.

    Raises:
        ValueError: For an unknown name or option, and for sizes that do not fit together.
    """
    if name not in _CLASSES:
        raise ValueError(f"Expected a head among {', '.join(HEADS)}, found {name!r}. Choose one of these.")
    check_head_options(name, options)
    return _CLASSES[name](feature_dim, num_labels, **options)


def check_head_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a head does not have, and values that are not of their kind.

    Args:
        name: One of ``HEADS``.
        options: Arguments of the head's class, without the sizes that the backbone and the classes decide.

    Raises:
        ValueError: Naming the option and its value.
    """
    parameters = dict(inspect.signature(_CLASSES[name]).parameters)
    known = {
        option: parameters[option].default for option in parameters if option not in ("feature_dim", "num_labels")
    }
    for option, value in options.items():
        if option not in known:
            near = difflib.get_close_matches(str(option), known, n=1)
            raise ValueError(
                f"Expected options of the head {name} ({', '.join(known) or 'it has none'}), found {option!r}"
                f"{f' (did you mean {near[0]!r}?)' if near else ''}. Correct the name, or leave it out."
            )
        if isinstance(known[option], bool):
            wanted, right = "true or false", isinstance(value, bool)
        elif isinstance(known[option], float):
            wanted, right = "a number from 0 to below 1", type(value) in (int, float) and 0 <= value < 1
        else:
            wanted = "a whole number of at least 1"
            right = (type(value) is int and value >= 1) or (value is None and known[option] is None)
        if not right:
            raise ValueError(
                f"Expected {wanted} as option `{option}` of the head {name}, found {value!r}. Correct it."
            )


class LinearHead(Head):
    """Global average pooling and one linear layer.

    Args:
        feature_dim: C.
        num_labels: K.
    """

    patches_only = True  # others are no part of the mean over the picture

    def __init__(self, feature_dim: int, num_labels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(feature_dim, num_labels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, C, H, W) or (B, N, C) features."""
        logits: torch.Tensor = self.classifier(as_tokens(features).mean(dim=1))
        return logits


class MLDecoder(Head):
    """ML-Decoder: one decoder layer whose queries look at the picture, without self-attention among them.

    With as many queries as classes each class has its own ("full decoding"); with fewer, a query serves a group of
    consecutive classes. With word vectors the queries come from them and all classes share the pooling, so that
    classes never seen in training can be predicted (zero-shot).

    Args:
        feature_dim: C.
        num_labels: K.
        num_queries: Most queries, 100 unless set; never more than K. Word vectors always have one per class.
        trainable_queries: Train the queries; as published they keep their random values.
        word_vector_dim: Width of the word vectors (300 in the paper); ``None`` for queries that are no words. Set
            the vectors by :meth:`set_word_vectors`.
        dim: d, width of the decoder.
        num_heads: Attention heads.
        feedforward_dim: Width between the two linear layers.
        dropout: Probability, everywhere.
    """

    word_vectors: torch.Tensor

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        num_queries: int | None = None,
        trainable_queries: bool = False,
        word_vector_dim: int | None = None,
        dim: int = 768,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if word_vector_dim is not None and (num_queries is not None or trainable_queries):
            raise ValueError(
                "Expected `word_vector_dim` without `num_queries` and `trainable_queries`, found them together: each "
                "class has its word vector as query. Leave them out."
            )
        if num_queries is not None and num_queries < 1:
            raise ValueError(f"Expected `num_queries` of at least 1, found {num_queries}. Leave it unset for 100.")
        self.num_labels = num_labels
        self.projection = nn.Linear(feature_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.layer = TransformerLayer(dim, num_heads, feedforward_dim, dropout)
        if word_vector_dim is not None:
            self.register_buffer("word_vectors", torch.empty(num_labels, word_vector_dim))
            self.word_projection = nn.Linear(word_vector_dim, dim)
            self.pooling = nn.Parameter(torch.empty(1, dim, 1))
            self.bias = nn.Parameter(torch.empty(1))
        else:
            queries = min(num_queries or MAX_QUERIES, num_labels)
            self.queries = nn.Parameter(torch.empty(queries, dim), requires_grad=trainable_queries)
            self.pooling = nn.Parameter(torch.empty(queries, dim, math.ceil(num_labels / queries)))
            self.bias = nn.Parameter(torch.empty(num_labels))
            if not trainable_queries:
                self.frozen = ("queries",)
        self.reset_parameters()

    @property
    def takes_word_vectors(self) -> bool:
        """Whether the queries come from word vectors."""
        return hasattr(self, "word_vectors")

    def reset_parameters(self) -> None:
        """Draw the head's own tensors anew; those of its layers draw theirs."""
        if self.takes_word_vectors:
            nn.init.constant_(self.word_vectors, math.nan)  # until they are set: zeros would seem to work
        else:
            nn.init.normal_(self.queries)
        nn.init.xavier_normal_(self.pooling)
        nn.init.zeros_(self.bias)

    def set_word_vectors(self, word_vectors: torch.Tensor) -> None:
        """Set the classes by their (K, W) word vectors; K may be another number than before.

        Raises:
            ValueError: If the head takes none, or for another shape or values that are not finite.
        """
        if not self.takes_word_vectors:
            raise ValueError(
                "Expected a head with `word_vector_dim`, found one whose queries are no words. Build it with that "
                "option."
            )
        width = self.word_vectors.shape[1]
        vectors = word_vectors.detach().clone().to(self.word_vectors)  # may be too large for the model's precision
        if vectors.ndim != 2 or vectors.shape[1] != width or not vectors.isfinite().all():
            raise ValueError(
                f"Expected finite word vectors of shape (classes, {width}), found {tuple(vectors.shape)}"
                f"{'' if vectors.isfinite().all() else ' with NaN or infinity'}. One row per class."
            )
        self.num_labels, self.word_vectors = len(vectors), vectors

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, C, H, W) or (B, N, C) features."""
        tokens = F.relu(self.projection(as_tokens(features)))
        queries = F.relu(self.word_projection(self.word_vectors)) if self.takes_word_vectors else self.queries
        queries = queries.expand(tokens.shape[0], -1, -1)
        # What is left of the self-attention's block: its residual sum and norm.
        queries = self.norm(queries + self.dropout(queries))
        decoded = self.layer(queries, queries, tokens, tokens)
        pooling = self.pooling.expand(decoded.shape[1], -1, -1)
        logits = torch.einsum("bqd,qdg->bqg", decoded, pooling)  # class = query · group size + slot
        return logits.flatten(1)[:, : self.num_labels] + self.bias


class Query2Label(Head):
    """Query2Label: an encoder layer over the map, then decoder layers whose queries are label embeddings.

    As published the decoder has no self-attention.

    Args:
        feature_dim: C; features of another width than ``dim`` are projected to it.
        num_labels: K.
        dim: d, a multiple of 4.
        num_heads: Attention heads.
        feedforward_dim: Width between the two linear layers of a layer.
        encoder_layers: Layers over the map.
        decoder_layers: Layers of label queries.
        dropout: Probability, everywhere.
    """

    patches_only = True  # others have no place in the picture

    def __init__(
        self,
        feature_dim: int,
        num_labels: int,
        dim: int = 2048,
        num_heads: int = 4,
        feedforward_dim: int = 8192,
        encoder_layers: int = 1,
        decoder_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"Expected `dim` to be a multiple of 4, found {dim}: a quarter is one kind of sine.")
        sizes = (dim, num_heads, feedforward_dim, dropout)
        self.projection = nn.Linear(feature_dim, dim) if feature_dim != dim else nn.Identity()
        self.encoder = nn.ModuleList(TransformerLayer(*sizes) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(TransformerLayer(*sizes) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(dim)
        self.label_embedding = nn.Parameter(torch.empty(num_labels, dim))
        self.classifier = ClasswiseLinear(num_labels, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw label embedding and transformer anew."""
        nn.init.normal_(self.label_embedding)
        for stack in (self.encoder, self.decoder):
            for parameter in stack.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, C, H, W) features, or of (B, N, C) tokens of a square map, row by row.

        Raises:
            ValueError: If N is no square number.
        """
        height, width = features.shape[2:] if features.ndim == 4 else (math.isqrt(features.shape[1]),) * 2
        tokens = self.projection(as_tokens(features))
        if height * width != tokens.shape[1]:
            raise ValueError(
                f"Expected the tokens of a square map for Query2Label's positions, found {tokens.shape[1]} of them. "
                "Pass square pictures, or choose the head ml_decoder, which has no positions."
            )
        positions = sine_positions(height, width, tokens.shape[2], tokens.device).to(self.label_embedding.dtype)
        for layer in self.encoder:
            placed = tokens + positions
            tokens = layer(tokens, placed, placed, tokens)
        placed, labels = tokens + positions, self.label_embedding.expand(tokens.shape[0], -1, -1)
        decoded = torch.zeros_like(labels)
        for layer in self.decoder:
            decoded = layer(decoded, decoded + labels, placed, tokens)
        logits: torch.Tensor = self.classifier(self.norm(decoded))
        return logits


class CTran(Head):
    """C-Tran without revealed labels: picture and label tokens pass through one encoder together.

    As wide as the features. Label-mask training is left out: in a study of wrong labels, showing some of them would
    leak the noise. So every label has the state "unknown", whose embedding no gradient reaches.

    Args:
        feature_dim: C, also the encoder's width and that of its feed-forward layers.
        num_labels: K.
        num_heads: Attention heads; must divide C.
        num_layers: Encoder layers.
        dropout: Probability in the layers.
    """

    frozen = ("state_embedding",)

    def __init__(
        self, feature_dim: int, num_labels: int, num_heads: int = 4, num_layers: int = 3, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.label_embedding = nn.Parameter(torch.empty(num_labels, feature_dim))
        # unknown, negative, positive: the published tensor, of which only the first row is used here
        self.state_embedding = nn.Parameter(torch.empty(3, feature_dim), requires_grad=False)
        self.norm = nn.LayerNorm(feature_dim)
        sizes = (feature_dim, num_heads, feature_dim, dropout)
        self.layers = nn.ModuleList(TransformerLayer(*sizes) for _ in range(num_layers))
        self.classifier = ClasswiseLinear(num_labels, feature_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw embeddings and linear layers anew, uniform within ±1/√(fan-in)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                uniform_by_fan_in(module.weight, module.in_features)
                uniform_by_fan_in(module.bias, module.in_features)
        for embedding in (self.label_embedding, self.state_embedding):
            uniform_by_fan_in(embedding, embedding.shape[1])

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return (B, K) logits of (B, C, H, W) or (B, N, C) features."""
        tokens = as_tokens(features)
        labels = self.label_embedding + self.state_embedding[0]
        both = self.norm(torch.cat([tokens, labels.expand(tokens.shape[0], -1, -1)], dim=1))
        for layer in self.layers:
            both = layer(both, both, both, both)
        logits: torch.Tensor = self.classifier(both[:, tokens.shape[1] :])
        return logits


_CLASSES: dict[str, Callable[..., Head]] = {
    "linear": LinearHead,
    "ml_decoder": MLDecoder,
    "query2label": Query2Label,
    "query2label_small": partial(Query2Label, dim=768, feedforward_dim=2048),
    "c_tran": CTran,
}
HEADS = tuple(_CLASSES)
