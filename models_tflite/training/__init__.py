"""From public recordings to a signed bundle. Never installed at the bedside."""
