"""What a whole source holds, counted in one pass and in bounded memory."""
