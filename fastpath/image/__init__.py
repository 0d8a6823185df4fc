"""MicroVM images: a kernel and an initramfs, from a recipe in vm-images/.

recipe.load(name)      what goes into an image
packages, sources      Debian's packages, fetched and read without root
kbuild                 kernel modules of ours, for the image's kernel
ownkernel              a kernel with ours in it, in place of Debian's
tree                   all of it collected in memory; modules, bytecode
cpio                   the archive that an initramfs is
images.build(name)     these in order, once; the result is cached
"""

from __future__ import annotations
