"""Without the extra `demo` the engine says what to install, in one sentence."""

import subprocess
import sys


def test_a_missing_engine_is_told_with_its_remedy(request):
    code = "import sys; sys.modules['transformers'] = None; import kvstore.engines.transformers"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=request.config.rootpath
    )
    assert told.returncode == 1
    assert "needs transformers, which is not installed: pip install 'kvstore[demo]'" in told.stderr
