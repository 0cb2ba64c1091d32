"""Every field of a configuration, with its default, range and meaning. Other configs start from this one.

    python -m dualcl_jax.main --config=configs/default.py --config.data.data_dir=DIR --workdir=runs/default

The full method on CIFAR-10 (a TFDS directory): both views as query and key, the hardest quarter of the queue as
negatives, no older key of the anchor's own image among them. Time and accuracy: unmeasured, unlike
those of `configs/cifar10_moco.py`.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The defaults. A field's type is that of its default: an int field refuses 0.25."""
    config = ConfigDict()

    config.seed = 0  # of initialisation, order, views and shuffling; at least 0

    config.init_from = ''  # workdir of a run whose encoder a new run starts from; empty: random (--init_from=DIR)

    config.skip_nonfinite = 0  # pass over so many batches whose loss or gradient is not finite (--skip_nonfinite=N)

    config.data = data = ConfigDict()
    data.name = 'cifar10'  # photo_patches | folder | npz | any image classification set of TFDS, as array_record
    data.data_dir = ''  # TFDS directory; empty: TFDS's own default
    data.path = ''  # the folder of data.name='folder', the file of 'npz'
    data.image_size = 32  # side of a view in pixels
    data.limit = 0  # train on a fixed random subset of this many images; 0: all
    data.num_examples = 0  # refuse a training set of another size; 0: take what is there
    data.labels = (
        'auto'  # of a folder: subfolders | none | a CSV file of path,label | auto: by subfolder if all have one
    )
    data.test_fraction = 0.1  # of the labelled images of a folder without test split, held out by their content
    # Of the training images, after data.limit: a fixed random share that is not trained on. The monitor measures on it,
    # and whatever a run says of test images is then of these; `dualcl_jax.evaluate` alone sees the test split.
    data.validation_fraction = 0.0
    data.stored_size = 0  # side of the central square kept of each image, in pixels; 0: 8/7 of image_size
    data.memory_bytes = 4 * 2**30  # images that fit are kept so in memory; else whole ones are decoded for every batch
    data.max_skipped = 0.05  # stop if more than this share of a folder's images cannot be used
    data.mean = ()  # per channel, in [0, 1]; empty: measured on the training images and written into config.json
    data.std = ()  # likewise

    config.views = views = ConfigDict()
    views.preset = 'moco_v2'  # moco_v1 | moco_v2 | moco_v3 | moco_cifar: augmentation of the two views
    # Each of these, where set, replaces the preset's value in both views. Ranges:
    # `dualcl_jax.method.views.images.ViewSpec`.
    views.crop_scale = config_dict.placeholder(tuple)  # (least, largest) share of the image's area
    views.crop_ratio = config_dict.placeholder(tuple)  # (least, largest) width / height
    views.flip = config_dict.placeholder(float)
    views.jitter_probability = config_dict.placeholder(float)
    views.brightness = config_dict.placeholder(float)  # factor in [max(0, 1 - b), 1 + b]
    views.contrast = config_dict.placeholder(float)
    views.saturation = config_dict.placeholder(float)
    views.hue = config_dict.placeholder(float)  # shift in [-h, h] turns, h at most 0.5
    views.grayscale = config_dict.placeholder(float)
    views.blur_probability = config_dict.placeholder(float)
    views.blur_sigma = config_dict.placeholder(tuple)  # pixels
    views.solarize_probability = config_dict.placeholder(float)
    views.solarize_threshold = config_dict.placeholder(float)

    config.model = model = ConfigDict()
    model.name = 'resnet18'  # resnet18 | resnet34 | resnet50 | vit_s16 | vit_tiny, tiny (for tests)
    model.stem = 'cifar'  # of a ResNet; cifar: 3×3, stride 1 | imagenet: 7×7, stride 2, and pooling
    model.width = 64  # channels of the first stage of a ResNet; that of a ViT is in its name
    model.norm = 'split:8'  # BN statistics: local (a device) | sync (all) | split:n (n groups of the global batch)
    model.projection = 'mlp'  # linear (MoCo v1) | mlp (v2) | mlp2_bn (v3 after a ResNet) | mlp3_bn (v3 after a ViT)
    model.predictor = 'none'  # on the query's side only: none | mlp2 (MoCo v3 after a ResNet) | mlp2_bn (after a ViT)
    model.head_width = 4096  # of the inner layers of v3's projections and predictors
    model.freeze_patches = True  # the patch projection of a ViT stays as it was drawn; others have none
    model.remat = False  # compute activations inside blocks again for the backward pass: less memory, more time
    model.dim = 128  # D, length of queries and keys
    model.dtype = 'float32'  # of the encoder's computation: float32 | bfloat16; the loss is float32 always
    # float32 | tensorfloat32 | bfloat16: what accelerators may round the factors of a float32 encoder's products to
    model.matmul_precision = 'float32'

    config.loss = loss = ConfigDict()
    loss.temperature = 0.1  # τ > 0
    loss.hardness = 0.0  # β >= 0: a negative of similarity s weighs exp(β·s/τ), 2010.04592; 0: all alike
    loss.symmetric = True  # both views act as query and as key; False: MoCo's one-way loss
    loss.key_weight = 0.0  # w in [0, 1], share of the term anchored at the key
    # Negatives of that term: batch (other queries of the global batch) | queue (at w = 0.5 it ruined the encoder in the
    # runs of experiments/README.md: anchor and negatives are constants, so it attracts alone).
    loss.key_term = 'batch'
    loss.two_tau = False  # differentiate 2τ times the loss (MoCo v3); what is logged stays InfoNCE
    loss.shuffle_keys = False  # keys in other BN groups, on other devices, than their queries (MoCo's shuffling BN)

    config.negatives = negatives = ConfigDict()
    # auto (top_k or threshold, whichever is faster here; config.json says which) | all | top_k (jax.lax.top_k) |
    # threshold (the same set, without a sort) | approx_max_k (fast on TPU, 95 % of it) | ring (k after the `skip`
    # hardest) | random
    negatives.selector = 'auto'
    negatives.k = 0  # how many; 0: by fraction
    # Of queue.size, or of the batch without a queue, in (0, 1]; read where k is 0. What a share leaves of the loss is
    # told by experiments/softmax_share.py: at τ 0.1 the hardest quarter held 92 % of the softmax by itself.
    negatives.fraction = 0.25
    negatives.skip = 0  # of selector='ring': how many of the hardest are left out
    # constant | linear | cosine: how many, from start_fraction to k over the run; with threshold, ring or random.
    negatives.schedule = 'constant'
    negatives.start_fraction = 1.0  # of the candidates, in (0, 1]; read where there is a schedule
    negatives.mask_same_image = True  # an older key of the anchor's image is no negative

    config.queue = queue = ConfigDict()
    queue.size = 4096  # K; 0: no queue, negatives are the other keys of the global batch (MoCo v3)
    queue.init = 'empty'  # empty: slots count once they are filled | noise: MoCo's random unit vectors
    # K/n slots on each of n devices, which must divide K, in place of all K: for queues of millions. The loss is that
    # of a replicated queue within rounding, so a run may change it on the way. Selectors: all, top_k, threshold, ring.
    queue.sharded = False

    config.ema = ema = ConfigDict()
    ema.momentum = 0.99  # m in [0, 1]: ξ <- m·ξ + (1 - m)·θ
    ema.schedule = 'constant'  # constant | cosine: from m to 1 over the run

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'sgd'  # sgd | lars | adamw
    optimizer.learning_rate = 0.06  # peak, at reference_batch; the loss is the mean over view orders
    optimizer.reference_batch = 0  # linear rule: the peak is learning_rate × batch_size / this; 0: learning_rate itself
    optimizer.schedule = 'cosine'  # after the warm-up: cosine (to 0) | step (a tenth at 60 % and 80 % of the run)
    optimizer.momentum = 0.9  # of sgd and lars; β1 of adamw
    optimizer.weight_decay = 5e-4
    optimizer.decay_norm_and_bias = False  # decay biases and normalisation scales too (MoCo does)
    optimizer.warmup_epochs = 0.0  # linear from 0

    config.train = train = ConfigDict()
    train.batch_size = 256  # global: over all devices of all processes
    train.epochs = 200
    train.steps = 0  # wins over epochs where positive
    # Parts of the batch, one after the other, whose gradients are averaged into one step, for memory. Each part has its
    # own batch statistics, with the groups of model.norm. Keys come first: all parts see the same queue or batch of
    # keys, and the queue takes the keys of the whole batch at once.
    train.accumulate_steps = 1

    config.log = log = ConfigDict()
    log.every_steps = 20  # a line of metrics.jsonl; the first and the last step always
    log.pictures = True  # draw figures/ and write report.html at the end; `dualcl_jax.report` writes a page later

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 500  # and the last step always; 0: only the last
    checkpoint.keep = 2  # the newest so many
    checkpoint.keep_best = 0  # and the best so many by kNN

    config.monitor = monitor = ConfigDict()
    monitor.every_epochs = 5  # kNN accuracy on the test split, also before the first step and at the end; 0: off
    monitor.k = 200  # neighbours
    monitor.temperature = 0.1  # votes weigh exp(cosine / temperature)
    monitor.bank = 50_000  # at most so many training images in the bank; 0: all

    config.parallel = parallel = ConfigDict()
    parallel.mapper = 'pmap'  # pmap | shard_map
    parallel.deterministic = True  # on GPUs: only kernels that give the same bits every time, for an exact resume
    parallel.workers = -1  # processes that decode, for sets not in memory; -1: one a core, 0: none
    parallel.timeout_s = 50.0  # how long the processes of a run wait for each other to start
    parallel.silence_s = 30.0  # a process that is not heard of for so long is lost: the others stop and name it
    parallel.stall_s = 600.0  # so is one that is heard of, but stays behind the steps of the others for so long

    config.lock()  # a config that misspells a field must not train without it
    return config
