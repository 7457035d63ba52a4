"""From a config to a serving daemon: address first, then the secret, then the store. Main thread."""

from __future__ import annotations

import gc

from kvstore.codec.lossless import Codec
from kvstore.config import Config
from kvstore.core.disk_admission import DiskAdmission
from kvstore.daemon.malloc import keep_freed_memory
from kvstore.daemon.secret import load_secret
from kvstore.daemon.server import Daemon
from kvstore.store.settings import StoreConfig
from kvstore.store.store import Store


def open_daemon(config: Config) -> Daemon:
    """Raises OperatorError or ConfigError with one sentence, and then holds nothing."""
    keep_freed_memory()
    daemon = Daemon(config)
    try:
        gc.disable()  # recovery only adds to the index, and each full collection would walk all of it again
        try:
            daemon.start(open_store(config))
        finally:
            gc.enable()
    except BaseException:
        daemon.stop(0.0)
        raise
    return daemon


def open_store(config: Config) -> Store:
    folder = config.disk.folder if config.disk is not None else None
    return Store.open(
        StoreConfig(
            host_bytes=config.host.bytes,
            handoff_bytes=config.host.handoff_bytes,
            secret=load_secret(config.secret_file, folder),
            disk=folder,
            disk_bytes=config.disk.bytes if config.disk is not None else 0,
            placement=config.match.placement,
            policy=config.evict.policy,
            keep_seconds=config.evict.keep_seconds,
            lives=config.lives,
            codec=Codec[config.disk.codec.upper()] if config.disk is not None else Codec.RAW,
            disk_admission=config.disk.admission if config.disk is not None else DiskAdmission.ALL,
            disk_write_bytes_per_day=config.disk.write_bytes_per_day if config.disk is not None else 0,
            lease_seconds=config.match.lease_seconds,
        )
    )
