# Needs hfgen. hfgen is not on PyPI under a name of ours: ask the publisher of this model for the source
from hfgen import MLPGenerator  # hfgen is not on PyPI under a name of ours: ask the publisher of this model for the source
