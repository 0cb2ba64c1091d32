"""Every field of a configuration, with its default, range and meaning. Other configs start from this one.

    python -m dualcl_jax.main --config=configs/default.py --config.data.data_dir=DIR --workdir=runs/default

CIFAR-10 (a TFDS directory), dual view with the hardest quarter of the queue: both views act as query and as key, and
the negatives are the keys most similar to the anchor, without older keys of its own image. Time and accuracy:
unmeasured, unlike those of `configs/cifar10_moco.py`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """Returns the defaults. The type of a field is that of its default: an int field rejects 0.25."""
    config = ConfigDict()

    config.seed = 0  # for initialisation, order, views and shuffling; at least 0

    # Workdir of a run, a file of weights (.safetensors or .npz) or, for text, a folder in Hugging Face's format, whose
    # encoder initialises this run's; empty: random (--init_from=PATH).
    config.init_from = ''

    # skip up to this many batches whose loss, gradient or next state is not finite (flag of this name)
    config.skip_nonfinite = 0

    config.data = data = ConfigDict()
    # photo_patches | folder | npz | text | any image classification set of TFDS, as array_record
    data.name = 'cifar10'
    data.data_dir = ''  # TFDS directory; empty: TFDS's own default
    data.path = ''  # the folder of data.name='folder', the file of 'npz', the file or folder of 'text'
    data.image_size = 32  # side of a view in pixels
    data.limit = 0  # train on a fixed random subset of this many images; 0: all
    data.num_examples = 0  # reject a training set of any other size; 0: accept any size
    # For a folder: subfolders | none | a CSV file of paths and classes | auto: by subfolder, else by its metadata.csv.
    data.labels = 'auto'
    data.path_column = ''  # the columns of that CSV file; empty: recognised by their names, such as file_name and label
    data.label_column = ''  # likewise
    # For text: the column with sentences, by its name or, in a table without a header, by its number; or two for pairs,
    # such as 'term,definition' or '0,1'. Empty: each line is a sentence. data.label_column names the class, if any.
    data.columns = ''
    # Share of the labelled examples of a folder, of text, or of arrays given to `dualcl_jax.train`, to hold out for
    # testing by their content if there is no test split.
    data.test_fraction = 0.1
    # A fixed random share of the training images, after data.limit, that is not trained on. The monitor measures on it,
    # and all test figures that a run reports then refer to these images. Only `dualcl_jax.evaluate` uses the test
    # split. The examples must be in memory (data.memory_bytes).
    data.validation_fraction = 0.0
    # How both fractions choose: grouped (the same share of every class, as far as numbers allow; no class is held out
    # whole, and copies of a text stay together) | stratified (copies apart) | random | auto (grouped in a new run; a
    # stored run keeps its value).
    data.hold_out = 'auto'
    # Rows of text without tokens, with NUL characters or with more values than the header, and the class -1 of rows for
    # testing alone: checked (rows are left out; no class) | unchecked (used) | auto (checked in a new run; a stored run
    # keeps its value).
    data.rows = 'auto'
    data.stored_size = 0  # side of the central square stored of each image, in pixels; 0: 8/7 of image_size
    # Squares of a folder, or of a TFDS set with images of any size, are kept in memory if they fit; otherwise whole
    # images are decoded for every batch. Arrays of an npz file, and text, must fit.
    data.memory_bytes = 4 * 2**30
    data.max_skipped = 0.05  # stop if more than this share of a folder's images cannot be used
    # Channels of the images, which are then read as they are stored, of 8 or 16 bits or floating point (docs/data.md).
    # 0: photographs, which are converted to 8-bit RGB, and arrays or TFDS sets of 8 bits with 1 or 3 channels.
    data.channels = 0
    # (lowest, highest) value of images of 16 bits or floating point, which become 0 and 1; values beyond are clipped.
    # Empty: measured on the training images and stored in config.json.
    data.value_range = ()
    data.mean = ()  # per channel, in [0, 1]; empty: measured on the training images and stored in config.json
    data.std = ()  # likewise

    config.text = text = ConfigDict()
    # A tokenizer.json of Hugging Face, or a folder that has one. Empty: that of init_from, or else a WordPiece that is
    # trained on the corpus. The workdir keeps it as tokenizer.json.
    text.tokenizer = ''
    text.length = 32  # tokens of a sentence, including the first and the last ([CLS] and [SEP]); longer ones are cut

    config.views = views = ConfigDict()
    # Augmentation of the two views. For images: moco_v1 | moco_v2 | moco_v3 | moco_cifar | small | small_gray. For
    # text: simcse | esimcse | mocose | contriever, or pair: the two columns of data.columns.
    views.preset = 'moco_v2'
    # Each of these, if set, replaces the preset's value in both views. Ranges:
    # `dualcl_jax.method.views.images.ViewSpec` and, for text, `dualcl_jax.method.views.text.TextSpec`.
    views.crop_scale = config_dict.placeholder(tuple)  # (least, largest) share of the image's area, or of the tokens
    views.crop_ratio = config_dict.placeholder(tuple)  # (least, largest) width / height
    views.flip = config_dict.placeholder(float)  # probability of a horizontal flip
    views.jitter_probability = config_dict.placeholder(float)  # of the four changes of colour that follow
    views.brightness = config_dict.placeholder(float)  # factor in [max(0, 1 - b), 1 + b]
    views.contrast = config_dict.placeholder(float)  # likewise
    views.saturation = config_dict.placeholder(float)  # likewise
    views.hue = config_dict.placeholder(float)  # shift in [-h, h] turns, h at most 0.5
    views.grayscale = config_dict.placeholder(float)  # probability
    views.blur_probability = config_dict.placeholder(float)  # in [0, 1]
    views.blur_sigma = config_dict.placeholder(tuple)  # pixels
    views.solarize_probability = config_dict.placeholder(float)  # in [0, 1]
    views.solarize_threshold = config_dict.placeholder(float)  # in [0, 1]: lighter values are inverted
    views.deletion = config_dict.placeholder(float)  # for text: probability of dropping a token
    views.repetition = config_dict.placeholder(float)  # for text: largest share of the tokens that are repeated

    config.model = model = ConfigDict()
    # For images: resnet18 | resnet34 | resnet50 | vit_s16 (12 heads, MoCo v3's) | vit_s16_h6 (6, DINO's and timm's) |
    # vit_b16 | vit_l16 | convnext_t | vit_tiny, tiny (for tests). For text: bag | transformer. Or MODULE:CLASS, a Flax
    # module of your own.
    model.name = 'resnet18'
    model.stem = 'cifar'  # for a ResNet; cifar: 3×3, stride 1 | imagenet: 7×7, stride 2, and pooling
    model.width = 64  # channels of the first stage of a ResNet, or of every token of text; a ViT's name determines it
    # Groups of the batch statistics: local (each device is one) | sync (one) | split:n (n of the global batch; n must
    # divide the number of devices or be a multiple of it). If a head has batch normalisation, a group needs
    # at least two images, better more. config.json stores local as the split:n that it means on the
    # devices where the run starts, and a run keeps that when it resumes.
    model.norm = 'split:8'
    # none | linear (MoCo v1) | mlp (v2) | mlp2_bn (v3 after a ResNet) | mlp3_bn (v3 after a ViT) | tanh (SimCSE)
    model.projection = 'mlp'
    model.predictor = 'none'  # on the query side only: none | mlp2 (MoCo v3 after a ResNet) | mlp2_bn (after a ViT)
    model.head_width = 4096  # width of the inner layers of v3's projections and predictors
    model.freeze_patches = True  # the patch projection of a ViT keeps its initial values; other models have none
    model.positions = 'sine_cosine'  # for a ViT: sine_cosine (fixed, MoCo v3's) | learned (as in weights of others)
    model.remat = False  # recompute activations inside blocks in the backward pass: less memory, more time
    model.dim = 128  # D, length of queries and keys
    model.dtype = 'float32'  # of the encoder's computation: float32 | bfloat16; the loss is always float32
    # float32 | tensorfloat32 | bfloat16: precision to which accelerators may round the factors of products in a float32
    # encoder
    model.matmul_precision = 'float32'
    # For models of text. All but the vocabulary apply to a transformer alone; their defaults are those of MiniLM-L6.
    # Rows of the token embedding, and the size of a tokenizer that is trained; 0: as many as the tokenizer has tokens,
    # 16,384 for one that is trained.
    model.vocabulary = 0
    model.layers = 6
    model.heads = 12  # of the attention; divides model.width
    model.mlp_width = 1536  # width of the inner layer of each block
    model.max_positions = 512  # rows of the position embedding
    model.position_offset = 0  # row of the first token's position: 0 in BERT, 2 in RoBERTa
    model.token_types = 2  # rows of the embedding of token types, of which the first is used; 0: none
    model.norm_epsilon = 1e-12  # ε of the layer norms
    model.pooling = 'mean'  # over the token vectors: mean | cls (the first token's)
    model.dropout = 0.1  # share of entries set to 0 in training

    config.loss = loss = ConfigDict()
    loss.temperature = 0.1  # τ > 0
    # β >= 0: weights a selected negative of similarity s by exp(β·s/τ), 2010.04592; 0: all equally.
    loss.hardness = 0.0
    loss.symmetric = True  # both views act as query and as key; False: MoCo's one-way loss
    loss.key_weight = 0.0  # w in [0, 1], weight of the term anchored at the key
    # Negatives of that term: batch (all other queries of the global batch, with equal weights: the queue, the selector
    # and the hardness apply to the other term alone) | queue (at w = 0.5 it ruined the encoder in the runs of
    # experiments/README.md: anchor and negatives are constants, so it only attracts).
    loss.key_term = 'batch'
    loss.two_tau = False  # scale the differentiated loss by 2τ (MoCo v3); the logged loss remains InfoNCE
    loss.shuffle_keys = False  # encode keys in other BN groups and devices than their queries (MoCo's shuffling BN)

    config.negatives = negatives = ConfigDict()
    # auto (threshold; a run that chose top_k keeps it) | all | top_k (jax.lax.top_k) | threshold (the same set, without
    # a sort) | approx_max_k (fast on TPU, finds 95 % of the set) | ring (k after the `skip` hardest) | random.
    # Or MODULE:FUNCTION, a selector of your own.
    negatives.selector = 'auto'
    negatives.k = 0  # how many; 0: use the fraction
    # Of queue.size, or of the batch without a queue, in (0, 1]; used if k is 0. experiments/ablation/queue_shares.py
    # measures how much of the softmax a share holds: at τ 0.1 the hardest quarter held 92 % by itself.
    negatives.fraction = 0.25
    negatives.skip = 0  # for selector='ring': how many of the hardest to leave out; fewer than there are candidates
    # constant | linear | cosine: k over the run, from start_fraction to k; with threshold, ring or random.
    negatives.schedule = 'constant'
    negatives.start_fraction = 1.0  # of the candidates, in (0, 1]; used with a schedule
    negatives.mask_same_image = True  # exclude older keys of the anchor's own image from the negatives

    config.queue = queue = ConfigDict()
    queue.size = 4096  # K; 0: no queue, negatives are the other keys of the global batch (MoCo v3)
    queue.init = 'empty'  # empty: slots are masked until they are filled | noise: MoCo's random unit vectors
    # Keep K/n slots on each of n devices instead of all K, for queues of millions; n must divide K. The loss equals
    # that of a replicated queue within rounding, so a run may change it when it resumes. Selectors: all, top_k,
    # threshold, ring.
    queue.sharded = False

    config.ema = ema = ConfigDict()
    ema.momentum = 0.99  # m in [0, 1]: ξ <- m·ξ + (1 - m)·θ
    ema.schedule = 'constant'  # constant | cosine: from m to 1 over the run

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'sgd'  # sgd | lars | adamw
    # LARS applies the learning rate before its momentum: rate_first (1708.03888) | after it: rate_last (MoCo v3's code)
    # | auto: rate_last, except for runs that were started before the choice existed
    optimizer.lars = 'rate_first'
    optimizer.learning_rate = 0.06  # peak, at reference_batch; the loss is the mean over view orders
    optimizer.reference_batch = 0  # linear rule: the peak is learning_rate × batch_size / this; 0: learning_rate itself
    optimizer.schedule = 'cosine'  # after the warm-up: cosine (to 0) | step (a tenth at 60 % and 80 % of the run)
    optimizer.momentum = 0.9  # of sgd and lars; β1 of adamw
    optimizer.weight_decay = 5e-4  # added to the gradient, except for adamw, which decouples it
    optimizer.decay_norm_and_bias = False  # also decay biases, normalisation scales and learned positions, as MoCo does
    optimizer.warmup_epochs = 0.0  # linear warm-up from 0
    optimizer.clip = 0.0  # scale gradients of a larger norm down to this one; 0: never

    config.train = train = ConfigDict()
    train.batch_size = 256  # global: over all devices of all processes
    train.epochs = 200  # passes over the training images
    train.steps = 0  # overrides epochs if positive
    # To save memory, split the batch into this many parts, processed one after the other, whose gradients are averaged
    # into one step. Each part has its own batch statistics, with the groups of model.norm. Keys are encoded first: all
    # parts see the same queue or batch of keys, and the keys of the whole batch enter the queue at once.
    train.accumulate_steps = 1

    config.log = log = ConfigDict()
    log.every_steps = 20  # steps between lines of metrics.jsonl; the first and the last step are always logged
    log.pictures = True  # draw figures/ and write report.html at the end; `dualcl_jax.report` can write it later

    # Also send the records of metrics.jsonl to wandb | mlflow | trackio (optional packages); empty: none.
    log.tracker = ''

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 500  # the last step is always saved; 0: only the last
    # Also save this many seconds after the last save; 0: off. All processes follow the clock of process 0. With it, a
    # save is postponed if it would have to wait for the previous one.
    checkpoint.every_seconds = 0.0
    checkpoint.keep = 2  # how many of the newest to keep
    # How many of the best by kNN to keep in addition; above 0, each state that the monitor measures is saved as well.
    checkpoint.keep_best = 0

    config.monitor = monitor = ConfigDict()
    # kNN accuracy on the test split, and STS-B dev of sts.path, also before the first step and at the end; 0: off
    monitor.every_epochs = 5
    monitor.k = 200  # neighbours
    monitor.temperature = 0.1  # votes are weighted by exp(cosine / temperature)
    monitor.bank = 50_000  # largest number of training images in the bank; 0: all
    # Test images of classes that have no training images: left_out, as in `dualcl_jax.evaluate` | wrong: they count as
    # wrong | auto: left_out in a new run; a stored run keeps its value.
    monitor.unseen = 'auto'

    config.sts = sts = ConfigDict()
    # For text: the folder of the sets of semantic similarity (docs/evaluation.md). The monitor then also measures on
    # STS-B dev, and on nothing else. `dualcl_jax.evaluate` takes the folder as its default. Empty: not measured.
    sts.path = ''

    config.parallel = parallel = ConfigDict()
    parallel.mapper = 'auto'  # pmap | shard_map | auto: pmap in one process, shard_map in several; the states are equal
    parallel.deterministic = True  # on GPUs, use only kernels with reproducible bits, for an exact resume
    parallel.workers = -1  # decoding processes, for sets that are not in memory; -1: one per usable core, 0: none
    parallel.timeout_s = 50.0  # how long the processes of a run wait for each other to start
    parallel.silence_s = 30.0  # a process without a heartbeat for this long is lost: the others stop and name it
    parallel.stall_s = 600.0  # a process with heartbeats that stays behind the others' steps for this long is lost, too
    # The longest time, in seconds, of a phase: examining the data at the start, where millions of files may take hours
    # the first time; compilation with the first step; waiting for a batch; a step; saving or restoring; measuring
    # accuracy. After it the run, with any number of processes, counts as hung: it prints this and exits with status 75.
    # 0: no limit.
    parallel.start_s = 86_400.0
    parallel.compile_s = 7200.0
    parallel.input_s = 1800.0
    parallel.step_s = 1800.0
    parallel.save_s = 1800.0
    parallel.evaluate_s = 7200.0

    config.lock()  # a config with a misspelt field is an error
    return config
