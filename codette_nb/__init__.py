__version__ = "0.1.0"

# GNU's OpenMP reads this once, when PyTorch is loaded; nbs/31c_train.probe.ipynb measures what it is for.
import os
if not {'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'} & os.environ.keys(): os.environ['GOMP_SPINCOUNT'] = '1000000'
del os
