"""Image files: found below their folder, decoded to RGB."""

from pathlib import Path

from PIL import Image


class ImageFolder:
    """Pictures below one folder, which no path leaves."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, file: str, sample: str) -> Path:
        """``root/file``; ValueError naming the sample where it does not exist or leaves root."""
        path = self.root / file
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise ValueError(
                f"sample {sample}: image {file} lies outside the image folder {self.root} "
                f"(links are followed: give the folder that really holds the images)"
            )
        if not path.is_file():
            raise ValueError(f"sample {sample}: image {path} does not exist")
        return path

    def open(self, file: str, sample: str) -> Image.Image:
        """Decode ``root/file`` to RGB; ValueError naming the sample where it cannot be had."""
        path = self.find(file, sample)
        try:
            with Image.open(path) as image:
                return _on_white(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's all three
            raise ValueError(f"sample {sample}: image {path} cannot be read: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        # A cut-out on convert("RGB") would stand before whatever colour its hidden pixels have.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
