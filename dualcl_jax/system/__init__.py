"""What any program needs: errors, flags, configs, files, devices and processes."""
