"""Start a script in several processes, on this machine or on this and others, through torchrun.

    python scripts/launch.py --nproc_per_node 4 vqa/train_end2end.py --cfg cfgs/vqa/base_4x16G_fp32.yaml
    python scripts/launch.py --nnodes 2 --node_rank 0 --master_addr HOST --nproc_per_node 4 SCRIPT ARGS ...

Several nodes run the same command with their own --node_rank and meet at --master_addr. A process that fails ends all
of them, and its error is printed last. With --max_restarts a failed run starts again from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

PORT = 29500


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name, default, text in (
        ("--nnodes", 1, "machines"),
        ("--node_rank", 0, "number of this machine, from 0"),
        ("--nproc_per_node", 1, "processes on this machine, one for each GPU"),
        ("--max_restarts", int(os.environ.get("MAX_RESTARTS", "0")), "how often a failed run starts again"),
    ):
        parser.add_argument(name, name.replace("_", "-"), type=int, default=default, metavar="N", help=text)
    parser.add_argument("--master_addr", "--master-addr", default="127.0.0.1", metavar="HOST", help="machine 0")
    port = os.environ.get("MASTER_PORT")
    parser.add_argument(
        "--master_port",
        "--master-port",
        type=int,
        default=int(port) if port else None,
        metavar="PORT",
        help=f"of machine 0; default: a free one on a single machine, {PORT} on several",
    )
    parser.add_argument(
        "--local_addr",
        "--local-addr",
        default=os.environ.get("LOCAL_ADDR", ""),
        metavar="HOST",
        help="this machine as the others reach it; default: its host name",
    )
    parser.add_argument("script", help="what to run")
    parser.add_argument("args", nargs=argparse.REMAINDER, help="its arguments; --dist is added")
    args = parser.parse_args(argv)
    if min(args.nnodes, args.nproc_per_node) < 1 or not 0 <= args.node_rank < args.nnodes or args.max_restarts < 0:
        parser.error(
            f"{args.nnodes} machines with {args.nproc_per_node} processes, this one number {args.node_rank}, "
            f"{args.max_restarts} restarts: expected at least 1, 1, a number below --nnodes, and 0"
        )
    if not os.path.isfile(args.script):
        parser.error(f"no script {args.script} in {os.getcwd()}: start this from the repository root")

    from common.errors import UserError
    from common.train.launch import run_elastic

    try:
        return run_elastic(
            [args.script, *args.args, "--dist"],
            processes=args.nproc_per_node,
            nodes=args.nnodes,
            node=args.node_rank,
            host=args.master_addr,
            port=args.master_port or (PORT if args.nnodes > 1 else 0),
            restarts=args.max_restarts,
            local_address=args.local_addr,
        )
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.exit(main())
