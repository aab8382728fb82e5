"""The options of a training run. Only the standard library is imported here, so that `--help` answers at once."""

from dataclasses import dataclass, field
from typing import Literal

CROP_SIZES = {"segmentation": "512", "classification": "224", "detection": None}  # None is whole images
MODELS = {"segmentation": "glam_swin", "classification": "glam_swin", "detection": "mask_rcnn"}


@dataclass
class TrainArguments:
    """What a run is made of; the comments are the help of the command line."""

    task: Literal["segmentation", "classification", "detection"] = "segmentation"  # what is learned
    recipe: str | None = None  # options from a YAML file, or from one of ours by name; those given here win
    # Data
    train: str = ""  # images/ and masks/ (or a folder a class, or images/ and annotations.json), a published data set's folder, or a name for `datasets`
    val: str = ""  # the same, to evaluate on; without it there is no best/
    base_size: str | None = None  # LONGxSHORT edges that images are resized to fit, also to evaluate
    crop_size: str | None = None  # side of a sample, or HEIGHTxWIDTH (default: 512; classification: 224)
    min_scale: float = 0.5  # smallest factor of the random resizing before the crop
    max_scale: float = 2.0  # largest factor
    flip: bool = True  # never mirror an image
    augmentation: bool = True  # random crops alone (classification: the central square), nothing else
    workers: int | None = None  # processes that load data (default: one fewer than cores, at most 8)
    unreadable: Literal["raise", "skip"] = "raise"  # what to do at an image that cannot be read
    # Evaluation
    eval_window: str | None = None  # predict in windows of this side, or HEIGHTxWIDTH (default: whole images)
    eval_overlap: float = 0.5  # share of a window that its neighbour covers as well
    eval_blend: Literal["gaussian", "constant"] = "gaussian"  # weights of the pixels of overlapping windows
    # Classification
    min_area: float = 0.08  # smallest share of the image that a random crop takes
    rand_augment: str = "rand-m9-mstd0.5-inc1"  # RandAugment in timm's words, or "none"
    colour_jitter: float = 0.4  # strength of random colours; as in timm, only without RandAugment
    random_erasing: float = 0.25  # probability that a rectangle is filled with noise
    label_smoothing: float = 0.1  # share of a label that is spread over all classes
    mix_token: bool = True  # never exchange rectangles of patches between images of a batch
    token_labels: str | None = None  # folder of LV-ViT's label maps (default: a token's label is its image's)
    # Detection
    shorter_side: str = "800"  # images are resized to it; or a range, such as 480-800, from which it is drawn
    longer_side: int = 1333  # at most; the shorter side gives way
    # Model
    model: str | None = None  # glam_swin (default), segdeformer, maformer, cswin, mask_rcnn, or transformers'
    preset: str | None = None  # size by name: nano, tiny, small, base (default: the model's own, tiny)
    set: list[str] = field(default_factory=list)  # NAME=VALUE: an option of its configuration; repeatable
    weights: str | None = None  # fine-tune this: a run, a folder of save_pretrained, or a Hub name
    swin: str | None = None  # start from this Swin checkpoint of transformers: folder or Hub name
    segformer: str | None = None  # start segdeformer from this SegFormer checkpoint
    backbone: str | None = None  # start segdeformer or mask_rcnn from this encoder: checkpoint, timm's name
    # Optimisation
    steps: int | None = None  # steps of the optimizer; or give --epochs
    epochs: float | None = None  # passes over the training images (default: 100)
    batch_size: int = 8  # images of one forward pass of one process
    accumulation: int = 1  # forward passes for one step of the optimizer
    learning_rate: float = 6e-5  # of AdamW, at its highest
    head_lr_factor: float = 1.0  # factor of the learning rate outside the backbone
    lr_factor: list[str] = field(default_factory=list)  # PART=FACTOR: where names have PART; repeatable
    weight_decay: float = 0.01  # of the weights of linear layers and convolutions; nothing else decays
    schedule: Literal["poly", "cosine", "constant", "step"] = "poly"  # course of the rate after warm-up
    milestones: list[str] = field(default_factory=list)  # N: epoch (or step) of a "step"; repeatable
    min_learning_rate: float = 0.0  # where the schedule ends
    cooldown_steps: int = 0  # last steps of the run, at that learning rate
    warmup_steps: int | None = None  # linear warm-up (default: a tenth of the steps, at most 1500)
    clip_norm: float | None = None  # largest norm of the gradient (default: not clipped)
    ema: float | None = None  # decay of an average of the weights, such as 0.999, that takes their place
    seed: int = 0  # of the initial weights, the order of images, augmentation and dropout
    # Machine
    precision: Literal["no", "bf16", "fp16"] | None = None  # mixed; default: as accelerate is configured
    compile: bool = False  # torch.compile the model: slow to start, faster afterwards on a GPU
    gradient_checkpointing: bool = False  # compute blocks again backwards: less memory, more time
    cpu: bool = False  # leave GPUs alone
    sync_batch_norm: bool = True  # several GPUs: batch norm sees each GPU's images alone
    # Run
    output: str = ""  # folder of this run
    push_to_hub: str | None = None  # name on the Hub: at the end, upload the best weights there
    resume: bool = False  # continue the run in --output; its options are known, give only those to change
    eval_interval: int | None = None  # steps between evaluations and checkpoints (default: a tenth of all)
    log_interval: int = 10  # steps between reports on a GPU; a CPU reports every step
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"  # where curves go beside log.jsonl
    dry_run: bool = False  # build everything, try it on two generated samples, print the plan, and stop
    traceback: bool = False  # show where in the code an error came from

    def __post_init__(self) -> None:
        self.crop_size = self.crop_size or CROP_SIZES[self.task]
        self.model = self.model or MODELS[self.task]
