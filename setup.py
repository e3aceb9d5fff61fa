"""Packaging for sigma-fairseq. Tool settings are in pyproject.toml, exact versions in
requirements.lock.

fairseq is an extra and never a base requirement: the plugin goes next to the fairseq that the
user already has (fairseq, fairseq-fixed or a checkout) and must not install another one over it.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"

setup(
    name="sigma-fairseq",
    version="0.1.0",
    description="σReparam for fairseq: Transformer training without attention entropy collapse",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    author="The sigma_fairseq authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    keywords="fairseq transformer attention spectral-normalization training-stability",
    python_requires=">=3.11,<3.13",
    install_requires=["torch>=2.6", "numpy"],
    extras_require={
        # Has to be compiled against the torch that will run it: install torch, numpy, cython,
        # ninja, wheel and setuptools<82 first, then this with --no-build-isolation --no-binary
        # fairseq-fixed (its published wheel for 3.12 does not load with a recent torch).
        # scripts/setup.sh does so. NumPy 2 lacks what it needs to sample from language models.
        "fairseq": ["fairseq-fixed==0.12.3.1", "numpy<2"],
        "translation": ["sentencepiece", "sacrebleu", "sacremoses", "subword-nmt"],
        "speech": [
            "torchaudio",
            "soundfile",
            "editdistance",
            "jiwer",
            "flashlight-text",
            "kenlm",
        ],
        "report": ["matplotlib", "scipy"],
        # torchscale needs timm, and timm needs torchvision.
        "torchscale": ["torchscale==0.3.0", "torchvision"],
        "dev": [
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "hypothesis",
            "ruff",
            "mypy",
            "tensorboard",
            "pre-commit",
            "types-setuptools",
        ],
    },
    packages=find_packages(include=["sigma_fairseq", "sigma_fairseq.*"]),
    # Every file under the package goes into the wheel, not only the Python ones.
    package_data={"sigma_fairseq": ["**/*"]},
    exclude_package_data={"": ["__pycache__/*", "*.py[cod]"]},
    include_package_data=False,
    entry_points={"console_scripts": ["sigma-fairseq = sigma_fairseq.cli:main"]},
    zip_safe=False,
)
