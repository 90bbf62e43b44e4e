"""What the checks against other libraries share."""
import subprocess


def verify(weft, folder, title):
    done = subprocess.run([weft, "verify", "--device", "cpu", folder], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    shown = [line for line in lines if line.startswith("logits") or line == lines[-1] or "FAILED" in line]
    print("\n  ".join([f"== {title}", *shown, *done.stderr.splitlines()]), flush=True)
    return done.returncode == 0
