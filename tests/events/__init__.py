"""Every file event of one process, struck: killed before and halfway, failed, and the files cut and flipped afterwards."""
