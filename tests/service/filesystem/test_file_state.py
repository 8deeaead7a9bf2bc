"""Which names the default ignores: what others leave beside images, and never an image."""

import pytest

from service.filesystem.file_state import NameFilter
from service.settings import IGNORED_NAMES

FILTER = NameFilter(IGNORED_NAMES)


@pytest.mark.parametrize(
    "path",
    [
        ".in.part-1.png.", ".pureftpd-upload.5f1c.15.7a.0d", ".part-1.png.Xa81Tz", ".nfs000000000012a5f800000001",
        ".fuse_hidden0000000a00000001", ".DS_Store", "._part-1.png", ".AppleDouble/part-1.png", "Icon\r",
        ".TemporaryItems/folders.501/x.png", ".Spotlight-V100/a.png", ".Trashes/501/a.png", ".fseventsd/0001.png",
        "__MACOSX/a.png", "Network Trash Folder/a.png", "@eaDir/part-1.png/SYNOPHOTO_THUMB_M.jpg", "@tmp/a.png",
        "#recycle/part-1.png", "#snapshot/GMT-2026.01.01/part-1.png", "@Recycle/part-1.png", ".@__thumb/s100part-1.png",
        "@__thumb/a.png", ".@upload_cache/a.png", "@Recently-Snapshot/a/part-1.png", "~snapshot/hourly.0/part-1.png",
        "Thumbs.db", "thumbs.DB", "Thumbs.db:encryptable", "ehthumbs_vista.db", "desktop.ini", "~$list.xlsx",
        "a.png.TMP",
        "$RECYCLE.BIN/S-1-5/$R1.png", "System Volume Information/a.png", "part-1.png.ocTransferId1234567.part",
        ".sync_5f1c.db", ".owncloudsync.log", "part-1.png.part", "part-1.6d1f3a02.partial", "link.png.rclonelink",
        ".syncthing.part-1.png.tmp", "~syncthing~part-1.png.tmp", ".stfolder/syncthing.txt", ".stversions/a~2026.png",
        ".stignore", "part-1.png.filepart", ".dropbox.cache/a.png", "part-1.png.crdownload",
        "part-1.png.download/part-1.png",
        "part-1.png.opdownload", "part-1.png.aria2", "lost+found/#123.png", "part-1.png~", ".part-1.png.swp",
        "part-1.png.lock", "part-1.png.!sync", "part-1.png.SyncPart", "rclone-chunked-upload-a1b2/00001.png",
    ],
)  # fmt: skip
def test_what_others_leave_beside_images_is_ignored(path: str) -> None:
    assert FILTER.ignores_path(path)


@pytest.mark.parametrize(
    "name",
    [
        "part-1.png", "IMG_0001.JPG", "part.tmp.png", "tmp.png", "temp-03.tif", "part.part.png", "download.jpg",
        "lock-washer.png", "lock.bmp", "#12.png", "@12.png", "$12.png", "~12.png", "snapshot.png", "#snapshot.png",
        "recycle.png", "@tmp.png", "Thumbs.png", "desktop.png", "Icon.png", "swp.webp", "sync.png", "upload.jpeg",
        "uploading-1.png", "part (1).png", "part~1.png", "part-1.png.bmp", "A$B.tiff", "été.png", "x.part.1.png",
        "2026-11-28T10:00:00.png", "lost+found.png", "System Volume Information.png", "rclone.png",
    ],
)  # fmt: skip
def test_a_name_of_an_image_is_not(name: str) -> None:
    assert not FILTER.ignores_path(f"flange/2026-11-28/{name}")
