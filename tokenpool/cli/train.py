"""tokenpool train, search, finetune"""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenpool.cli.common import _settings
from tokenpool.cli.show import _progress


def _job_options(one: argparse.ArgumentParser, step: str) -> None:
    from tokenpool.train.recipe import PRESETS
    one.add_argument("--preset", default="pebbles", metavar="NAME", help=f"{', '.join(PRESETS)}; default: pebbles")
    one.add_argument("--model", metavar="NAME", help="a model of the preset; default: its first")
    if step == "finetune":
        one.add_argument("--system", default="wk_medoids", metavar="NAME",
                         help="a pooling method, plain, convolution, dynamic_vit, patch_merger; tokenpool, ToMe, ATC "
                              "and others with their own options; default: wk_medoids")
        one.add_argument("--init", "--start", default="", metavar="NAME", help="of a clustering; default: top_k (Algorithm 1)")
        one.add_argument("--counts", action="store_true", help="carry counts into later attention (not in the paper)")
        one.add_argument("--saving", type=float, default=0.0, metavar="SHARE", help="of the computations, such as 0.42")
        one.add_argument("--schedule", default="", metavar="NAME", help="found by a search, in place of --saving")
        one.add_argument("--distill", action="store_true", help="dynamic_vit: learn from the plain model too")
    if step == "search":
        one.add_argument("--penalty", type=float, required=True, metavar="LAMBDA", help="larger: fewer tokens")
    one.add_argument("--qk", default="", metavar="READING", help="normalise keys and queries: r1 or r2 (eq. 6)")
    one.add_argument("--alpha", default="", metavar="KIND", help="with --qk: one or learned")
    one.add_argument("--seed", type=int, default=0)
    if step != "train":
        one.add_argument("--base-seed", type=int, default=0, metavar="N", help="which base model to go on from")
    one.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights to begin with, .safetensors or .pth")
    one.add_argument("--data", metavar="NAME", help="another place of the preset's data: a folder or a timm name")
    one.add_argument("--images", "--pictures", type=int, metavar="N", help="train on so many only")
    one.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", dest="settings",
                     help="change the preset's recipe, such as epochs=3 lr=1e-4")
    one.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where there is one")
    one.add_argument("--checkpoint-seconds", type=float, default=60.0, metavar="S", help="default: 60")
    one.add_argument("--checkpoint-steps", type=int, default=0, metavar="N", help="every N steps instead")
    one.add_argument("--no-tensorboard", action="store_true")
    one.add_argument("--dry-run", action="store_true", help="build, count, read one batch, take one step; keep nothing")
    one.add_argument("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: results")


def _job(args: argparse.Namespace) -> None:
    from tokenpool.train import jobs
    from tokenpool.train.recipe import Job, load_preset
    preset = load_preset(args.preset)
    own = ("system", "init", "counts", "saving", "schedule", "distill", "penalty", "base_seed")
    job = Job(args.preset, args.step, args.model or next(iter(preset.models)), qk=args.qk, alpha=args.alpha,
              seed=args.seed, **{k: getattr(args, k) for k in own if hasattr(args, k)})
    with _progress() as bar:
        task = bar.add_task("", total=None, visible=jobs.is_main())
        jobs.run(job, args.out, settings=_settings(args), data=args.data, images=args.images,
                 checkpoint=args.checkpoint, device=args.device, say=bar.console.print,
                 checkpoint_seconds=args.checkpoint_seconds,
                 checkpoint_steps=args.checkpoint_steps, tensorboard=not args.no_tensorboard,
                 max_steps=1 if args.dry_run else None,
                 tell=lambda what, done, total: bar.update(task, completed=done, total=total, description=what))
