"""Against servers that nobody here wrote, on loopback: LiteLLM's proxy, aimock, `transformers serve`.

They install into environments of their own under `~/.cache/batcher-servers` (`BATCHER_SERVERS` for another
folder). aimock takes seconds and is a part of every run where there is npm; the others take a minute and
up to 1.2 GB, and are installed by `scripts/third_party` only.
"""
