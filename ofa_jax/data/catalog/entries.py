"""The benchmark data sets themselves: files, sources, checksums, licences, sizes and citations, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ofa_jax.config.tasks import SplitRule
from ofa_jax.data.frames import Timestamps
from ofa_jax.errors import DataError

Kind = Literal["frame", "collection", "cases", "stream"]


@dataclass(frozen=True)
class DataFile:
    """A file of a data set.

    Attributes:
        path: Its place below the data root; the same name with ``.gz`` is taken as well.
        role: What it is to the data set: ``data``, ``train``, ``test``, ``info``, ``naive2``, or a stream's name.
        sha256: Of the published file's content, unpacked, in hexadecimal; None where it is not known.
        copy_sha256: Of a copy with the same values but other bytes, accepted where ``sha256`` is not known.
        url: Where a program can get it, otherwise None.
        member: Its name inside the zip archive that ``url`` gives; None where ``url`` gives the file itself.
        needed: Whether the data set cannot be read without it.
    """

    path: str
    role: str = "data"
    sha256: str | None = None
    copy_sha256: str | None = None
    url: str | None = None
    member: str | None = None
    needed: bool = True


@dataclass(frozen=True)
class DatasetEntry:
    """A benchmark data set.

    Attributes:
        name: What commands and configs call it.
        kind: What it is read as: a ``frame`` (CSV), a ``collection`` of single series (``.tsf`` or M4), labelled ``cases`` (``.ts``),
            or a labelled ``stream`` (``.npz``).
        title: One line about it.
        files: Its files.
        pages: Where a person finds it.
        licence: What its owners allow.
        citation: The paper that introduced it.
        note: What a person should know before using it.
        split: The split rule of a frame (protocol §3); a collection is split series by series, cases and streams come split.
        frequency: The pandas alias of its step, where it has one.
        season: Steps of its main cycle; for collections the m of MASE (protocol §3).
        horizons: The published horizons, in steps.
        timestamps: How a frame's protocol treats repeated and missing timestamps (see :func:`ofa_jax.data.frames.read_frame`).
        n_rows: Data rows T of a frame.
        n_channels: Series or channels C.
        n_series: Series S of a collection.
        n_train: Training cases, or training steps of a stream.
        n_test: Test cases, or test steps of a stream.
        length: Steps of the longest case.
        n_classes: Classes K of the cases.
    """

    name: str
    kind: Kind
    title: str
    files: tuple[DataFile, ...]
    pages: tuple[str, ...]
    licence: str
    citation: str
    note: str = ""
    split: SplitRule = "ratio"
    frequency: str | None = None
    season: int = 1
    horizons: tuple[int, ...] = ()
    timestamps: Timestamps = "error"
    n_rows: int | None = None
    n_channels: int | None = None
    n_series: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    length: int | None = None
    n_classes: int | None = None

    def file(self, role: str = "data") -> DataFile:
        """The file with a role.

        Raises:
            DataError: The data set has none.
        """
        for file in self.files:
            if file.role == role:
                return file
        what = f"the data set `{self.name}` has no file `{role}`"
        raise DataError(what, fix=f"It has {', '.join(file.role for file in self.files)}")


_LONG_HORIZONS = (96, 192, 336, 720)
_COLLECTION = "https://huggingface.co/datasets/thuml/Time-Series-Library"
_AUTOFORMER = "Wu et al., Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series Forecasting, NeurIPS 2021"
_LSTNET = "Lai et al., Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks, SIGIR 2018"


def _ett(number: int, letter: str, sha256: str) -> DatasetEntry:
    hourly = letter == "h"
    path = f"ETT-small/ETT{letter}{number}.csv"
    return DatasetEntry(
        name=f"ett{letter}{number}",
        kind="frame",
        title=f"Electricity transformer {number}, oil temperature and six loads, {'hourly' if hourly else 'every 15 minutes'}, 2016-2018",
        files=(
            DataFile(
                path, sha256=sha256, url=f"https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/{path}"
            ),
        ),
        pages=("https://github.com/zhouhaoyi/ETDataset",),
        licence="CC BY-ND 4.0",
        citation="Zhou et al., Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting, AAAI 2021",
        split="ett_hour" if hourly else "ett_minute",
        frequency="h" if hourly else "15min",
        season=24 if hourly else 96,
        horizons=_LONG_HORIZONS,
        n_rows=17420 if hourly else 69680,
        n_channels=7,
    )


def _collected(path: str, sha256: str) -> tuple[DataFile, ...]:
    return (DataFile(path, sha256=sha256, url=f"{_COLLECTION}/resolve/main/{path}"),)


_FRAMES = (
    _ett(1, "h", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"),
    _ett(2, "h", "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b"),
    _ett(1, "m", "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"),
    _ett(2, "m", "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd"),
    DatasetEntry(
        name="weather",
        kind="frame",
        title="Weather station on the roof of the Max Planck Institute for Biogeochemistry, Jena, every 10 minutes, 2020",
        files=_collected(
            "weather/weather.csv", "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63"
        ),
        pages=(
            _COLLECTION,
            "https://github.com/thuml/Autoformer",
            "https://www.bgc-jena.mpg.de/wetter/ (the station's own files)",
        ),
        licence="none stated",
        citation=_AUTOFORMER,
        frequency="10min",
        season=144,
        horizons=_LONG_HORIZONS,
        n_rows=52696,
        n_channels=21,
        # one timestamp stands twice and 100 minutes are missing; the protocol counts rows
        timestamps="as_is",
    ),
    DatasetEntry(
        name="illness",
        kind="frame",
        title="Influenza-like illness among patients in the United States, weekly, 2002-2020",
        files=_collected(
            "illness/national_illness.csv", "93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a"
        ),
        pages=(_COLLECTION, "https://gis.cdc.gov/grasp/fluview/fluportaldashboard.html (the source)"),
        licence="US public domain",
        citation=_AUTOFORMER,
        frequency="W-TUE",
        season=52,
        horizons=(24, 36, 48, 60),
        n_rows=966,
        n_channels=7,
    ),
    DatasetEntry(
        name="electricity",
        kind="frame",
        title="Electricity consumption of 321 clients in Portugal (ECL), hourly, 2012-2014",
        files=_collected(
            "electricity/electricity.csv", "7e45845d54c5219bad0ae6bc1b5316cf8ff9cead5d33fa998a5a51c2e4a497ad"
        ),
        pages=(
            _COLLECTION,
            "https://archive.ics.uci.edu/dataset/321/electricityloaddiagrams20112014 (the source, every 15 minutes)",
        ),
        licence="CC BY 4.0",
        citation=f"Trindade, ElectricityLoadDiagrams20112014, UCI Machine Learning Repository, 2015; in this form {_LSTNET}",
        note="The timestamps of the file run from 2016-07-01; they are the benchmark's own, not the measurement's.",
        frequency="h",
        season=24,
        horizons=_LONG_HORIZONS,
        n_rows=26304,
        n_channels=321,
    ),
    DatasetEntry(
        name="traffic",
        kind="frame",
        title="Road occupancy at 862 sensors of the San Francisco Bay area, hourly, 2015-2016",
        files=_collected(
            "traffic/traffic.csv", "cb06463d56fa17d87f47027cd9389ceae82a69eddee51cdb61480e120dab0b16"
        ),
        pages=(_COLLECTION, "https://pems.dot.ca.gov (the source)"),
        licence="public, no licence stated",
        citation=_LSTNET,
        note="The timestamps of the file run from 2016-07-01; they are the benchmark's own, not the measurement's.",
        frequency="h",
        season=24,
        horizons=_LONG_HORIZONS,
        n_rows=17544,
        n_channels=862,
    ),
)


def _m3(
    part: str, horizon: int, season: int, series: int, frequency: str | None, record: int, copy_sha256: str
) -> DatasetEntry:
    file = f"m3_{part}_dataset.tsf"
    return DatasetEntry(
        name=f"m3_{part}",
        kind="collection",
        title=f"M3 competition, {series} {part} series",
        files=(
            DataFile(
                f"m3/{file}",
                copy_sha256=copy_sha256,
                url=f"https://zenodo.org/records/{record}/files/m3_{part}_dataset.zip",
                member=file,
            ),
        ),
        pages=(
            f"https://zenodo.org/records/{record}",
            "https://forecasters.org/resources/time-series-data/m3-competition/ (M3C.xls)",
        ),
        licence="CC BY 4.0 (Monash archive); the competition's own files are free for research",
        citation="Makridakis and Hibon, The M3-Competition: results, conclusions and implications, International J. of Forecasting, 2000",
        frequency=frequency,
        season=season,
        horizons=(horizon,),
        n_channels=1,
        n_series=series,
    )


_M3 = (
    _m3(
        "yearly", 6, 1, 645, "Y", 4656222, "56abdec0a0f657f1caa58a4201f1642a62b5028cce2f0e5369cbc81e29b3b0af"
    ),
    _m3(
        "quarterly",
        8,
        4,
        756,
        "Q",
        4656262,
        "1f41e3581da6de6a2e1be6ecc7db49247c51c2a00db8e54fdc74dd8a358f230e",
    ),
    _m3(
        "monthly",
        18,
        12,
        1428,
        "M",
        4656298,
        "1e8aac30043cd32c354e6d449b2a443e5c838089f6af67c340a393671e333b11",
    ),
    _m3(
        "other", 8, 1, 174, None, 4656335, "fb6c9ab5c535b67d38d7c1cb5b2537e3e90f779fba02a5c6b254f13ded534940"
    ),
)

_M4_SITE = "https://github.com/Mcompetitions/M4-methods"
_M4_RAW = "https://raw.githubusercontent.com/Mcompetitions/M4-methods/master/Dataset"


def _m4(
    part: str, horizon: int, season: int, series: int, frequency: str, train_sha256: str, test_sha256: str
) -> DatasetEntry:
    return DatasetEntry(
        name=f"m4_{part.lower()}",
        kind="collection",
        title=f"M4 competition, {series} {part.lower()} series",
        files=(
            DataFile(f"m4/{part}-train.csv", "train", train_sha256, url=f"{_M4_RAW}/Train/{part}-train.csv"),
            DataFile(f"m4/{part}-test.csv", "test", test_sha256, url=f"{_M4_RAW}/Test/{part}-test.csv"),
            DataFile(
                "m4/M4-info.csv",
                "info",
                copy_sha256="697ded110db1c386270606c6ad2178460eae2a8fa3639cff0332c54bfc7acbfe",
                url=f"{_M4_RAW}/M4-info.csv",
                needed=False,
            ),
            DataFile(
                "m4/submission-Naive2.csv",
                "naive2",
                copy_sha256="f9610c625d6dee654ec458dcd07fb39373d065efc33b4f17d94c50b2aef00ef9",
                needed=False,
            ),
        ),
        pages=(
            _M4_SITE,
            f"{_M4_SITE}/tree/master/Point%20Forecasts (submission-Naive2.rar, to be unpacked by hand)",
        ),
        licence="no formal licence; the organisers allow free use for research (CC BY 4.0 in the Monash archive)",
        citation=(
            "Makridakis, Spiliotis and Assimakopoulos, The M4 Competition: 100,000 time series and 61 forecasting methods, "
            "International Journal of Forecasting, 2020"
        ),
        frequency=frequency,
        season=season,
        horizons=(horizon,),
        n_channels=1,
        n_series=series,
    )


_M4 = (
    _m4(
        "Yearly",
        6,
        1,
        23000,
        "Y",
        "6aa668d4f04654c0bf5f07b266a51c556f0df2faf4709f852653755396a249e4",
        "6dc2dd45b3af320389e2d3735cb4b3cdf320b63cbcda15d1a17193ab99702306",
    ),
    _m4(
        "Quarterly",
        8,
        4,
        24000,
        "Q",
        "4450678cd493aa965c14bde984a5b62a66d8c3b2f7af1e53779bc91ff008ccdc",
        "bf1cab3b969a744c220cdc148e3829803eaa5da2754270fc4f376e775cd7d0ae",
    ),
    _m4(
        "Monthly",
        18,
        12,
        48000,
        "M",
        "63aaa56198b4a22279a2fec541f56921f3bed6d8e0f84e550206df9276f2e9b9",
        "5e3538bf23b4a09f4078180c3e2b34859f0382e1c4f22564affc1797e8f3f48f",
    ),
    _m4(
        "Weekly",
        13,
        1,
        359,
        "W",
        "d478d3f6ed673e6ed3c2cb0fbed5425f72eedd51318ebebeb0b5ecfcefc37714",
        "3b2bc4be8e636e802260dcd843ca3c5da40536a1fbe1ecb3229a97dae4f44688",
    ),
    _m4(
        "Daily",
        14,
        1,
        4227,
        "D",
        "78e94591c60c06309f1e544fd7b2ccba28f3616b01913dd336a1d1d98483a1ec",
        "633b0815626ae266d36872c4d53e95eb93ee8d43e79587fceec519eba3e6b05e",
    ),
    _m4(
        "Hourly",
        48,
        24,
        414,
        "h",
        "ea59b7783573c49077a835ab6465c7d66f1474783360f310988a9a737fbca62f",
        "71a57fccb15e534d973626ada4fb87febf789e9317715b7cc6dd3b5f90db6f42",
    ),
)

_PACK = "To be packed once with `ofa_jax.data.archives.write_stream`."

_SMD_COPIES = {
    "machine-1-2": "aa9091c4952951ba7217424d83a5b188730ad53941e18551be82c3e2bdd261c6",
    "machine-1-3": "c8a18c0bbe3c7ba9f86a291cd6645806d6d527d884d0f17c9e6ed062cb63669a",
    "machine-1-4": "cf24cae8240673bc77d215047ab27f6f9a2cb775fdc3350938c8069e9ff17139",
    "machine-1-5": "11f6858d4ca9ecf6750f8d45080d6ac22d42f3ee81c5c2cb88e01ba93a796593",
    "machine-1-6": "2781311bd7d45644ee56ffb08793363f7101f6f364eaa3bdbfba92a1c7321fc9",
    "machine-1-7": "c3b45c35ece614251fc0d3cc2372ec5a9c515c384616f24994c8d83fd6d8fcbc",
    "machine-1-8": "ae4b477357f329d7905aa471c03f27cf84c169d2b7ca933f49f8ae59f18fcf55",
    "machine-2-1": "abb7bd9f22541d09106d3507a1c2ec51012173ffbee8bfc9a35cc90c6c0bb5eb",
    "machine-2-2": "619fc3bd07834723bcf7d539971d568847d47e5e5d333f04bd25eae701658d60",
    "machine-2-3": "7afa091fe74c69a52d69b12ace9369fad5949b762388db245a17d9c7a7a22fec",
    "machine-2-4": "14a39c5d1bc442a87cf459d45c99f8aad1ac66ff3131fb813085469a5f541c0d",
    "machine-2-5": "bd782a6f185aa56d9ae3cc83965438dd2e4db3588539f9fc82598c3a3a73620f",
    "machine-2-7": "6eb4666f07f6bb262f4e964ee41b3ba6906ebcec9e33c0ead7745b209d2922ad",
    "machine-2-8": "5efd228f9e51d25af3afaeebb652ede5e753bfe4ecb16d5795b0a9d60acfc5f5",
}
_SMD_MACHINES = tuple(
    f"machine-{group}-{index}" for group, count in ((1, 8), (2, 9), (3, 11)) for index in range(1, count + 1)
)
_TELEMANOM = "Hundman et al., Detecting Spacecraft Anomalies Using LSTMs and Nonparametric Dynamic Thresholding, KDD 2018"
_TELEMANOM_PAGES = ("https://github.com/khundman/telemanom (its README links the telemetry)", _COLLECTION)
_CALTECH = "Caltech, BSD-like (redistribution with the notice, no endorsement)"

_STREAMS = (
    DatasetEntry(
        name="smd",
        kind="stream",
        title="Server Machine Dataset, 28 machines of an internet company, 5 weeks",
        files=tuple(
            DataFile(f"SMD/{machine}.npz", machine, copy_sha256=_SMD_COPIES.get(machine))
            for machine in _SMD_MACHINES
        ),
        pages=(
            "https://github.com/NetManAIOps/OmniAnomaly (ServerMachineDataset: train, test and test_label as text)",
        ),
        licence="MIT",
        citation=(
            "Su et al., Robust Anomaly Detection for Multivariate Time Series through Stochastic Recurrent Neural Network, KDD 2019"
        ),
        note=f"{_PACK} One file per machine; published averages are over all 28.",
        n_channels=38,
        n_train=708405,
        n_test=708420,
    ),
    DatasetEntry(
        name="msl",
        kind="stream",
        title="Telemetry of the Mars rover Curiosity",
        files=(DataFile("MSL/MSL.npz"),),
        pages=_TELEMANOM_PAGES,
        licence=_CALTECH,
        citation=_TELEMANOM,
        note=_PACK,
        n_channels=55,
        n_train=58317,
        n_test=73729,
    ),
    DatasetEntry(
        name="smap",
        kind="stream",
        title="Telemetry of the satellite Soil Moisture Active Passive",
        files=(
            DataFile(
                "SMAP/SMAP.npz",
                copy_sha256="9d0d307554446c6924efc7218dc612d536c1743a2c3524877369c18dc4cbb848",
            ),
        ),
        pages=_TELEMANOM_PAGES,
        licence=_CALTECH,
        citation=_TELEMANOM,
        note=_PACK,
        n_channels=25,
        n_train=135183,
        n_test=427617,
    ),
    DatasetEntry(
        name="swat",
        kind="stream",
        title="Secure Water Treatment testbed, 11 days with attacks in the last four",
        files=(DataFile("SWaT/SWaT.npz"),),
        pages=("https://itrust.sutd.edu.sg/itrust-labs_datasets/dataset_info/ (by request)",),
        licence="by request to iTrust, Singapore University of Technology and Design; not to be passed on",
        citation="Goh et al., A Dataset to Support Research in the Design of Secure Water Treatment Systems, CRITIS 2016",
        note=_PACK,
        n_channels=51,
        n_train=495000,
        n_test=449919,
    ),
    DatasetEntry(
        name="psm",
        kind="stream",
        title="Pooled Server Metrics of eBay",
        files=(DataFile("PSM/PSM.npz"),),
        pages=("https://github.com/eBay/RANSynCoders (data: train.csv, test.csv, test_label.csv)",),
        licence="CC BY 4.0",
        citation=(
            "Abdulaal, Liu and Lancewicki, Practical Approach to Asynchronous Multivariate Time Series Anomaly Detection and Localization, "
            "KDD 2021"
        ),
        note=f"{_PACK} Some training values are missing; the published protocol sets them to 0.",
        n_channels=25,
        n_train=132481,
        n_test=87841,
    ),
)


def _uea(
    problem: str,
    sizes: tuple[int, int],
    channels: int,
    length: int,
    classes: int,
    copies: tuple[str | None, str | None],
) -> DatasetEntry:
    return DatasetEntry(
        name=problem.lower().replace("-", "_"),
        kind="cases",
        title=f"{problem}: {sizes[0]} training and {sizes[1]} test cases of {channels} channels in {classes} classes",
        files=tuple(
            DataFile(
                f"UEA/{problem}/{problem}_{part.upper()}.ts",
                part,
                copy_sha256=copy,
                url=f"https://www.timeseriesclassification.com/aeon-toolkit/{problem}.zip",
                member=f"{problem}_{part.upper()}.ts",
            )
            for part, copy in zip(("train", "test"), copies, strict=True)
        ),
        pages=(f"https://www.timeseriesclassification.com/description.php?Dataset={problem}",),
        licence="for research, to be cited; no formal licence",
        citation="Bagnall et al., The UEA multivariate time series classification archive, 2018, arXiv 1811.00075",
        n_channels=channels,
        n_train=sizes[0],
        n_test=sizes[1],
        length=length,
        n_classes=classes,
    )


_UEA = (
    _uea("EthanolConcentration", (261, 263), 3, 1751, 4, (None, None)),
    _uea("FaceDetection", (5890, 3524), 144, 62, 2, (None, None)),
    _uea(
        "Handwriting",
        (150, 850),
        3,
        152,
        26,
        (
            "c187e2288bd7f0667ab7453de436feeadb5dd417c5778a6c62b71852b50736cc",
            "156ee781ad41d58b4e5d48a907aef956f5a3756e1ab2d796c785db1a47863524",
        ),
    ),
    _uea("Heartbeat", (204, 205), 61, 405, 2, (None, None)),
    _uea(
        "JapaneseVowels",
        (270, 370),
        12,
        29,
        9,
        (
            "68a430eabd919cc77f40b1f5f3bc0dcafacc1486bca9260785aeb7d262cc78cd",
            "b3d41d6a0ca3bcad3afb9ca7d4365382aa51341e2e58bae2a574babdda5b9462",
        ),
    ),
    _uea("PEMS-SF", (267, 173), 963, 144, 7, (None, None)),
    _uea(
        "SelfRegulationSCP1",
        (268, 293),
        6,
        896,
        2,
        (
            "f424cc970af5e1a431ad5f74ceb4c7b6873b4a843aad3a2736cfd3f99034c959",
            "12ec55b945f4d7281bce0a95036ca13fdbcdaf589c6c911902d9170b7e940869",
        ),
    ),
    _uea("SelfRegulationSCP2", (200, 180), 7, 1152, 2, (None, None)),
    _uea("SpokenArabicDigits", (6599, 2199), 13, 93, 10, (None, None)),
    _uea("UWaveGestureLibrary", (120, 320), 3, 315, 8, (None, None)),
    _uea(
        "BasicMotions",
        (40, 40),
        6,
        100,
        4,
        (
            "8dc43cc6306cb679c888c01e26f91772ac4441a916da43bac8b79734a538b9d6",
            "79213102bc6fca1a398ad98ce1185dff0208fa3d1465e687f48288946b0ff8dc",
        ),
    ),
)

ENTRIES = (*_FRAMES, *_M3, *_M4, *_STREAMS, *_UEA)
"""Every data set of the method's paper and of GPT4TS, those that need a request or a visit included."""
